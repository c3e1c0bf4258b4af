"""A refusal to narrow or to shrink heads advises what works for the model."""

import re

import pytest
from transformers import MambaConfig, MambaForCausalLM

from laconic.compress import Compress, Narrow, ShrinkHeads, Step
from laconic.errors import UserError
from laconic.methods import Rtn
from laconic.model import LanguageModel
from tests.architectures import Architecture
from tests.experts import MIXTURES, jetmoe

pytestmark = pytest.mark.filterwarnings("ignore::laconic.errors.StructureNotice")
SIZES = {"heads": Narrow(heads=0.5), "channels": Narrow(channels=0.5), "experts": Narrow(experts=0.5)}


def mamba() -> MambaForCausalLM:
    return MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=4))


def refusal(step: Step, lm: LanguageModel) -> str | None:
    try:
        step.check(lm)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", [*MIXTURES, "jetmoe", "mamba"])
def test_a_refusal_advises_what_works(name: str) -> None:
    make = {"jetmoe": jetmoe, "mamba": mamba, **{mixture: row[0] for mixture, row in MIXTURES.items()}}[name]
    lm = LanguageModel.of(Architecture(name, make).model()).to_meta()
    said = {part: refusal(step, lm) for part, step in SIZES.items()} | {"shrink": refusal(ShrinkHeads(keep=0.5), lm)}
    works = {part for part, sentence in said.items() if sentence is None}
    for sentence in filter(None, (said["heads"], said["channels"], said["shrink"])):
        if "leave out the step" in sentence:
            continue
        advised, _, dense = sentence.rpartition("; ")[2].partition("compress its matrices")
        assert set(re.findall(r"(?:narrow its|remove) (\w+)", advised)) == works
        Compress(method=Rtn(bits=4), allow_dense="--allow-dense" in dense).check(lm)


def test_a_state_space_has_no_heads() -> None:
    lm = LanguageModel.of(mamba())
    for step in (Narrow(heads=0.5), ShrinkHeads(keep=0.5)):
        with pytest.raises(UserError, match=r"^The heads of this 'mamba' cannot .*, as it has no attention; compress"):
            step.check(lm)
