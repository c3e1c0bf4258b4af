"""Checks for the entry of an architecture and for a step, on a small model with random weights."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from laconic.calibrate import Calibration
from laconic.compress import Compress, Step
from laconic.errors import UserError
from laconic.methods import Svd
from laconic.model import LanguageModel, ModelTask
from laconic.model.anatomy import find_entry
from laconic.model.task import infer_task, reads_choices
from laconic.recipe.checks import check_order
from laconic.store import save
from laconic.testing.formats import expect


def randomize(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Set random weights, large enough for each of them to affect the outputs, and return the model.

    Args:
        model: the model, changed in place.
        seed: seed of the weights.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> model = randomize(BertModel(BertConfig(vocab_size=50, **shape)))
        >>> bool(model.encoder.layer[0].output.dense.bias.any()), model.training
        (True, False)
    """
    torch.manual_seed(seed)
    for name, tensor in model.eval().named_parameters():
        if tensor.requires_grad and tensor.dim() > 1:
            torch.nn.init.normal_(tensor, std=tensor.shape[-1] ** -0.5)
        elif tensor.requires_grad and name.endswith("bias"):
            torch.nn.init.normal_(tensor, std=0.1)
    return model


def random_batch(model: PreTrainedModel, seed: int = 0) -> dict[str, Tensor]:
    """Make a batch of two rows of seven tokens, the second with two padding tokens; with targets for a seq2seq model.

    For multiple choice, each row has three choices of that length.

    Args:
        model: a model with more than three tokens in its vocabulary.
        seed: seed of the tokens.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> batch = random_batch(BertModel(BertConfig(vocab_size=50, **shape)))
        >>> batch["input_ids"].shape, batch["attention_mask"].sum(1).tolist()
        (torch.Size([2, 7]), [7, 5])
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    if reads_choices(type(model)):
        mask = mask[:, None].repeat(1, 3, 1)
    batch = {"input_ids": torch.randint(3, vocabulary, mask.shape, generator=generator), "attention_mask": mask}
    # A class that finds answers makes the decoder's inputs itself, as many as source tokens.
    if model.config.is_encoder_decoder and infer_task(model) is not ModelTask.QUESTION_ANSWERING:
        batch["decoder_input_ids"] = torch.randint(3, vocabulary, (2, 5), generator=generator)
    return batch


def check_architecture(model: PreTrainedModel) -> None:
    """Check the entry of an architecture (`laconic.model.anatomy.Anatomy`) on a model of it.

    The requirements: the entry is found by the `model_type` of the model; every path in it leads to a matrix; each
    linear layer inside the blocks is a site; sites with the same `input` read the same tensor; and a model whose
    matrices are all replaced by low-rank factors has the same outputs after `save` and `from_pretrained`.

    Args:
        model: a small model, of a class that an Auto class of transformers finds. Its weights are replaced by random
            ones.

    Raises:
        AssertionError: a requirement is not met.
        UserError: laconic cannot use the model; the message has the reason.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> check_architecture(BertModel(BertConfig(vocab_size=50, **shape)))
    """
    lm = LanguageModel.of(randomize(model))
    kind = model.config.model_type
    entry = find_entry(kind)
    expect(
        entry is not None, f"there is no entry for '{kind}'; register one as an entry point in laconic.architectures"
    )
    sites = lm.sites(("*",))
    expect(lm.anatomy is entry or lm.anatomy == entry, f"'{kind}' was found by its structure, not by its entry")
    paths = {site.name for site in sites}
    for _, blocks in lm.stacks():
        for number, (path, block) in enumerate(blocks):
            for name, part in block.named_modules():
                if isinstance(part, torch.nn.Linear):
                    inside = [site for site in paths if site.endswith(f"{path}.{name}")]
                    expect(bool(inside), f"no site of '{kind}' is the linear layer '{name}' of block {number}")
    _check_shared_inputs(lm)
    with torch.no_grad():
        Compress(method=Svd(multiple=1), keep=0.5, targets=("*",)).apply(lm, None)
        before = model(**random_batch(model))[0]
    check_reload(lm, before)


def _check_shared_inputs(lm: LanguageModel) -> None:
    """Check that sites with the same `input` read the same tensor."""
    seen: dict[str, list[Tensor]] = {}

    def keep_input(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: seen.setdefault(name, []).append(args[0])

    hooks = [site.module.register_forward_pre_hook(keep_input(site.name)) for site in lm.sites() if site.stack is None]
    with torch.no_grad():
        lm.model(**random_batch(lm.model))
    for hook in hooks:
        hook.remove()
    first: dict[str, str] = {}
    for site in (site for site in lm.sites() if site.stack is None):
        expect(site.name in seen, f"the forward pass does not run '{site.name}'")
        other = first.setdefault(site.input, site.name)
        same = len(seen[other]) == len(seen[site.name]) and all(map(torch.equal, seen[other], seen[site.name]))
        expect(same, f"'{site.name}' and '{other}' have the same `input` in the entry, but read different tensors")


def check_step(step: Step, model: PreTrainedModel, data: Calibration | None = None) -> None:
    """Check that a step satisfies the requirements of `laconic.compress.Step` on one model.

    If `apply` refuses the model, the checks without weights refuse it too, and no weight changes. Otherwise `dry_run`
    gives the same structure as `apply`, and the result has the same outputs after `save` and `from_pretrained`.

    Args:
        step: the step with its parameters.
        model: a small model, changed in place.
        data: data for `apply`. If it is None, a step that needs data gets one random batch.

    Raises:
        AssertionError: a requirement is not met.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> check_step(Compress(method=Svd(multiple=1), keep=0.5), BertModel(BertConfig(vocab_size=50, **shape)))
    """
    lm = LanguageModel.of(model.eval())
    if data is None and step.needs_data:
        data = Calibration([random_batch(model)])
    try:
        planned = check_order(lm.to_meta(), [step], [step.name])[-1]
    except UserError as error:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        try:
            step.apply(lm, data)
        except UserError:
            same = all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
            expect(same, f"'{step.name}' changes weights before it refuses the model")
            return
        raise AssertionError(f"check of '{step.name}' refuses a model that apply accepts: {error}") from error
    lm = step.apply(lm, data).now or lm
    shapes = {name: tuple(tensor.shape) for name, tensor in lm.model.state_dict().items()}
    predicted = {name: tuple(tensor.shape) for name, tensor in planned.model.state_dict().items()}
    expect(
        shapes.keys() == predicted.keys(),
        f"dry_run of '{step.name}' leaves other tensors: {shapes.keys() ^ predicted.keys()}",
    )
    with torch.no_grad():
        check_reload(lm, lm.model(**random_batch(lm.model))[0])


def check_reload(lm: LanguageModel, outputs: Tensor) -> None:
    """Save `lm`, load it by its class, and compare its outputs on `random_batch` with `outputs`."""
    with TemporaryDirectory() as folder, torch.no_grad():
        save(lm, Path(folder) / "model")
        reloaded = type(lm.model).from_pretrained(f"{folder}/model")
        found = reloaded(**random_batch(reloaded))[0]
    expect(torch.allclose(found, outputs, rtol=1e-5, atol=2e-6), "the reloaded model has other outputs")
