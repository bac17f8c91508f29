import pytest

from lightning_vcppo.common.server_token import VARIABLE, default_file, make_token, read_token


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_token_is_made_once_and_only_its_user_reads_it():
    with pytest.raises(ValueError, match=rf"token_file: {default_file()} holds no token"):
        read_token()
    token, file = make_token()
    assert file == default_file() and len(token) > 40
    assert file.stat().st_mode & 0o777 == 0o600
    assert make_token() == (token, file) and read_token() == token
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_file_that_others_can_read_is_closed(tmp_path):
    file = tmp_path / "token"
    file.write_text("mine\n")
    file.chmod(0o644)
    assert make_token(str(file)) == ("mine", file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_token(str(file)) == "mine"


def test_the_environment_comes_first_but_for_a_named_file(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, "of the environment")
    assert read_token() == "of the environment"
    assert make_token() == ("of the environment", None)
    token, file = make_token(str(tmp_path / "named"))
    assert token != "of the environment" and read_token(str(file)) == token


@pytest.mark.parametrize(
    "content", [b"secret\nsecret", b"secret\rsecret", b"\xffsecret", b"secr\0et", "sécret".encode()]
)
def test_what_is_not_a_token_is_refused_without_printing_it(monkeypatch, tmp_path, content):
    file = tmp_path / "token"
    file.write_bytes(content)
    for read in (read_token, make_token):
        with pytest.raises(
            ValueError, match=r"^[^\n]*token_file: [^\n]*token: expected one line[^\n]*$"
        ) as refusal:
            read(str(file))
        assert "secr" not in str(refusal.value).replace(str(file), "")
    monkeypatch.setenv(VARIABLE, "secret\nsecret")
    for read in (read_token, make_token):
        with pytest.raises(ValueError, match=f"^{VARIABLE}: expected one line with the token"):
            read()
