import pytest
from rules.cases import Case, speaks_only_when_broken

from simpletuner.rules import hub

PUSH, CHECKPOINTS = "push_to_hub", "push_checkpoints_to_hub"
CASES = [
    Case(50, hub.checkpoints_follow_the_push, {CHECKPOINTS: True}, "push_to_hub is off", (CHECKPOINTS, PUSH),
         {PUSH: True}, "notice"),
    Case(51, hub.push_has_a_login, {PUSH: True}, "no login", (PUSH,), {PUSH: False}, code=4),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hub(case, config):
    speaks_only_when_broken(case, config)


def test_a_token_is_a_login_wherever_the_hub_looks_for_it(tmp_path):
    home, token = tmp_path / "home", tmp_path / "secret"
    environ = {"HF_HOME": str(home)}
    assert not hub.logged_in(environ)
    assert hub.logged_in({**environ, "HF_TOKEN": "hf_x"}) and not hub.logged_in({**environ, "HF_TOKEN": ""})
    home.mkdir()
    (home / "token").write_text("\n")
    assert not hub.logged_in(environ)
    (home / "token").write_text("hf_x\n")
    assert hub.logged_in(environ) and not hub.logged_in({**environ, "HF_TOKEN_PATH": str(token)})
    token.write_text("hf_x")
    assert hub.logged_in({"HF_HOME": "nowhere", "HF_TOKEN_PATH": str(token)})
    assert hub.logged_in({"XDG_CACHE_HOME": str(_cache(tmp_path))})


def _cache(folder):
    (folder / "cache/huggingface").mkdir(parents=True)
    (folder / "cache/huggingface/token").write_text("hf_x")
    return folder / "cache"
