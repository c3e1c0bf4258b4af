"""Run one benchmark, or all: `python -m benchmarks NAME [options]`; without a name, or with `all`, every one."""

import sys

from benchmarks import (
    allocation,
    architectures,
    bert_base,
    clipping,
    depth_quality,
    evaluate_large,
    experts,
    few_tokens,
    global_threshold,
    heads,
    heads_tables,
    int8,
    int8_kernels,
    knowledge,
    large_models,
    large_models_tables,
    latency,
    latency_budget,
    loss_prediction,
    lowrank,
    lowrank_bits,
    masked_lm,
    mixture,
    mixture_models,
    mixture_tables,
    packed_forward,
    prune_latency,
    prune_tables,
    pruning,
    quantize_tables,
    quantizing,
    rank_sweep,
    recovering,
    runtimes,
    seed_tables,
    sequential,
    start,
    students,
    study_overhead,
    tables,
    tenth,
    test_suite,
    threshold,
    weighted,
    width_quality,
)

BENCHMARKS = {
    "allocation": allocation.main,
    "allocation_tables": allocation.write_tables,
    "architectures": architectures.main,
    "architectures_tables": architectures.write_tables,
    "lowrank_quality": lowrank.main,
    "loss_prediction": loss_prediction.main,
    "latency": latency.main,
    "lowrank_bits": lowrank_bits.main,
    "lowrank_bits_tables": lowrank_bits.write_tables,
    "bert_base": bert_base.main,
    "clipping": clipping.main,
    "clipping_tables": clipping.write_tables,
    "depth_quality": depth_quality.main,
    "depth_tables": depth_quality.write_tables,
    "evaluate_large": evaluate_large.main,
    "evaluate_large_tables": evaluate_large.write_tables,
    "heads": heads.main,
    "heads_tables": heads_tables.main,
    "experts": experts.main,
    "experts_tables": experts.write_tables,
    "few_tokens": few_tokens.main,
    "few_tokens_tables": few_tokens.write_tables,
    "int8": int8.main,
    "int8_kernels": int8_kernels.main,
    "int8_tables": int8_kernels.write_tables,
    "knowledge": knowledge.main,
    "knowledge_tables": knowledge.write_tables,
    "large_models": large_models.main,
    "large_models_tables": large_models_tables.main,
    "latency_budget": latency_budget.main,
    "masked_lm": masked_lm.main,
    "mixture": mixture.main,
    "mixture_tables": mixture_tables.main,
    "mixture_models": mixture_models.main,
    "packed_forward": packed_forward.main,
    "packed_forward_tables": packed_forward.write_tables,
    "seed_tables": seed_tables.main,
    "sequential": sequential.main,
    "sequential_tables": sequential.write_tables,
    "tables": tables.main,
    "weighted": weighted.main,
    "rank_sweep": rank_sweep.main,
    "threshold": threshold.main,
    "rank_tables": rank_sweep.write_tables,
    "global_threshold": global_threshold.main,
    "prune_latency": prune_latency.main,
    "prune_quality": pruning.main,
    "prune_tables": prune_tables.main,
    "quantize_quality": quantizing.main,
    "quantize_tables": quantize_tables.main,
    "recover_quality": recovering.main,
    "recover_tables": recovering.write_tables,
    "tenth": tenth.main,
    "tenth_tables": tenth.write_tables,
    "students": students.main,
    "students_tables": students.write_tables,
    "start": start.main,
    "start_tables": start.write_tables,
    "study_overhead": study_overhead.main,
    "study_overhead_tables": study_overhead.write_tables,
    "runtimes": runtimes.main,
    "runtimes_tables": runtimes.write_tables,
    "test_suite": test_suite.main,
    "test_suite_tables": test_suite.write_tables,
    "two_sided": loss_prediction.two_sided,
    "width_quality": width_quality.main,
    "width_tables": width_quality.write_tables,
}


def main() -> int:
    """Run the benchmarks that `argv` names; exit with status 2 for an unknown name."""
    name, *options = sys.argv[1:] or ["all"]
    if name == "all":
        for run in BENCHMARKS.values():
            run(options)
        return 0
    if name not in BENCHMARKS:
        print(f"There is no benchmark '{name}'; known are all, {', '.join(BENCHMARKS)}.", file=sys.stderr)
        return 2
    BENCHMARKS[name](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
