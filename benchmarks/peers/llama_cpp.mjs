// Runs one GGUF file in llama.cpp on the CPU. Reads a question as JSON from the standard input and prints the answer as JSON.
//
// Question: {"model": FILE, "prompts": [[TOKEN, …], …], "texts": [TEXT, …], "embedded": [[TOKEN, …], …], "count": N,
//            "context": N}
// Answer: {"probabilities": for each prompt and each of its positions, that of every token (if count is 0),
//          "generated": the `count` greedy tokens after each prompt, "tokens": those of each text,
//          "vectors": those of `embedded` by an encoder}
// Without a question it prints the release of llama.cpp.
import fs from "node:fs";
import {getLlama} from "node-llama-cpp";

const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const input = fs.readFileSync(0, "utf8");
const answer = input.trim() ? await run(JSON.parse(input)) : {release: llama.llamaCppRelease};
// Everything is written before the process ends.
process.stdout.write(JSON.stringify(answer) + "\n", () => process.exit(0));

async function run(question) {
    const model = await llama.loadModel({modelPath: question.model, gpuLayers: 0, checkTensors: true});
    const found = {probabilities: [], generated: [], vectors: [], tokens: (question.texts ?? []).map((text) => model.tokenize(text))};
    if (question.embedded) {
        const encoder = await model.createEmbeddingContext({contextSize: question.context, threads: 1});
        for (const tokens of question.embedded) found.vectors.push((await encoder.getEmbeddingFor(tokens)).vector);
        return found;
    }
    const context = await model.createContext({contextSize: question.context, sequences: 1, flashAttention: false, threads: 1});
    const sequence = context.getSequence();
    for (const prompt of question.prompts ?? []) {
        await sequence.clearHistory();
        if (question.count) found.generated.push(await generate(sequence, prompt, question.count));
        else found.probabilities.push(await score(sequence, prompt));
    }
    return found;
}

async function generate(sequence, prompt, count) {
    const tokens = [];
    for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        tokens.push(token);
        if (tokens.length === count) break;
    }
    return tokens;
}

async function score(sequence, prompt) {
    const asked = prompt.map((token) => [token, {generateNext: {probabilities: true}}]);
    const positions = await sequence.controlledEvaluate(asked);
    return positions.map(({next}) => {
        const row = [];
        for (const [token, probability] of next.probabilities) row[token] = probability;
        return row;
    });
}
