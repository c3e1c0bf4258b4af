"""An option that would have no effect is refused: nobody believes that it had one."""

import pytest

from laconic.cli.main import status

TASK = ("--tasks", "perplexity:builtin:pydoc")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("evaluate", "MODEL", "--limit", "5"), "--limit is a setting of tasks, and none is named; name one, like"),
        (("evaluate", "MODEL", "--label-order", "a,b"), "--label-order is a setting of tasks, and none is named"),
        (("evaluate", "MODEL", *TASK, "--stream", "--batch", "2"), "--batch is a condition of timing, and with stream"),
        (("evaluate", "MODEL", *TASK, "--stream", "--length", "8"), "--length is a condition of timing, and with"),
        (
            ("evaluate", "MODEL", *TASK, "--runtime", "compile", "--dtype", "bfloat16"),
            "--dtype is a setting of the runtime 'eager', and the runtime is 'compile'; leave it out",
        ),
        (("export", "MODEL", "--to", "gptq", "-o", "OUT", "--limit", "5"), "--limit is a setting of tasks, and none"),
        (
            ("export", "MODEL", "--to", "gptq", "-o", "OUT", "--no-cache"),
            "The engines that read 'gptq' always keep a cache; leave out --no-cache",
        ),
        (("advise", "MODEL", "--runtime", "vllm", "--batch", "2"), "--batch must be 1 in the runtime 'vllm'"),
    ],
)
def test_it_is_named_before_a_model_is_looked_for(
    command: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(command) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and len(said.splitlines()) == 1
