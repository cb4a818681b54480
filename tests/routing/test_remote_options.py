"""What a user may say about a remote: address, key, price, limits; and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from edgellm import settings
from edgellm.errors import EdgellmError, Refused, UsageError
from edgellm.routing.remote import Limits, Price, RemoteOptions, Retry, Secret, from_settings
from edgellm.routing.remote.keys import read_key_file
from edgellm.routing.remote.prices import find_price
from edgellm.stream import Usage

KEY = "sk-test-0123456789abcdef"
URL = "https://api.example.com/v1"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("https://api.example.com/v1", "https://api.example.com/v1"),
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("https://api.example.com/v1/chat/completions", "https://api.example.com/v1"),
        ("https://api.example.com", "https://api.example.com/v1"),
        ("https://api.example.com/openai/v1", "https://api.example.com/openai/v1"),
        ("http://localhost:8080", "http://localhost:8080/v1"),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1"),
    ],
)
def test_an_address_is_a_base_that_ends_in_its_path(given: str, used: str) -> None:
    assert RemoteOptions(given, "big").url == used


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("api.example.com/v1", "must look like https://HOST/v1"),
        ("ftp://api.example.com", "must look like"),
        ("https://", "must look like"),
        ("https://api.example.com:99999/v1", "is not a URL"),
        ("https://bücher.example/v1", "must look like"),
        ("http://api.example.com/v1", "would carry prompts and key unencrypted"),
        ("http://192.168.1.5:8080/v1", "unencrypted"),
        ("http://127.0.0.1.evil.example/v1", "unencrypted"),
        (f"https://user:{KEY}@api.example.com/v1", "a key belongs into EDGELLM_REMOTE_KEY"),
        (f"https://api.example.com/v1?key={KEY}", "a key belongs into EDGELLM_REMOTE_KEY"),
        (f"https://api.example.com:{KEY}/v1", "is not a URL"),
    ],
)
def test_an_address_that_could_leak_or_mislead_is_refused(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        RemoteOptions(url, "big")
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_an_unencrypted_address_is_used_where_the_user_trusts_the_network() -> None:
    options = RemoteOptions("http://192.168.1.5:8080/v1", "big", allow_plain_http=True)
    assert (options.host, options.port, options.is_loopback) == ("192.168.1.5", 8080, False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RemoteOptions(URL, ""),
        lambda: RemoteOptions(URL, "big", context_tokens=0),
        lambda: RemoteOptions(URL, "big", capabilities=frozenset({"telepathy"})),
        lambda: RemoteOptions(URL, "big", "a key\nwith a line"),
        lambda: RemoteOptions(URL, "big", "schlüssel"),
        lambda: RemoteOptions(URL, "big", ""),
        lambda: Limits(connect_s=0),
        lambda: Limits(total_s=float("inf")),
        lambda: Limits(idle_s=float("nan")),
        lambda: Retry(attempts=0),
        lambda: Retry(backoff_s=-1),
        lambda: Price(-1, 1),
        lambda: Price(1, float("nan")),
    ],
)
def test_a_wrong_option_is_wrong_usage(make: Any) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert "line" not in str(caught.value)


def test_a_secret_shows_itself_only_when_asked() -> None:
    options = RemoteOptions(URL, "big", KEY)
    shown = [repr(options), str(options), f"{options.key}", repr(dataclasses.asdict(options))]
    shown += [repr(copy.deepcopy(options)), repr(vars(Secret)), repr(dataclasses.astuple(options))]
    assert all(KEY not in text for text in shown)
    assert options.secret is not None
    assert options.secret.reveal() == KEY
    with pytest.raises(TypeError, match="not written down"):
        pickle.dumps(options)


def test_a_price_is_for_a_million_tokens() -> None:
    assert Price(2.0, 10.0).cost_usd(Usage(500_000, 100_000)) == 2.0
    assert Price(0, 0).cost_usd(Usage(1, 1)) == 0


# ── keys ──


def key_file(tmp_path: Path, text: str = KEY + "\n", mode: int = 0o600) -> Path:
    path = tmp_path / "remote.key"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_key_file_that_only_its_owner_can_open_is_read(tmp_path: Path) -> None:
    assert read_key_file(key_file(tmp_path)).reveal() == KEY
    assert read_key_file(key_file(tmp_path, mode=0o400)).reveal() == KEY


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps access in lists, not in modes")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o777])
def test_a_key_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(Refused, match="chmod 600") as caught:
        read_key_file(key_file(tmp_path, mode=mode))
    assert KEY not in str(caught.value)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away"
)
def test_a_key_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = key_file(tmp_path)
    os.chown(path, 12345, 12345)
    with pytest.raises(Refused, match="belongs to somebody else"):
        read_key_file(path)


@pytest.mark.parametrize("text", ["", "two words", "a\nb", "schlüssel", "x" * 5000])
def test_a_key_file_without_a_key_is_wrong_usage(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_key_file(key_file(tmp_path, text))
    assert caught.value.__cause__ is None
    assert not text or text not in str(caught.value)


def test_a_key_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the key file"):
        read_key_file(tmp_path / "none")


# ── settings ──


def described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **said: str) -> RemoteOptions | None:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, value in said.items():
        monkeypatch.setenv(f"EDGELLM_REMOTE_{name}", value)
    return from_settings(settings.current())


def test_no_address_means_no_remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert described(monkeypatch, tmp_path) is None
    assert described(monkeypatch, tmp_path, KEY=KEY) is None


def test_the_environment_describes_a_remote(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = described(monkeypatch, tmp_path, URL=URL, MODEL="big", KEY=KEY)
    assert found is not None
    assert (found.url, found.model, found.price) == (URL, "big", None)
    assert found.secret is not None
    assert found.secret.reveal() == KEY
    assert KEY not in repr(settings.current())


def test_an_argument_beats_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    described(monkeypatch, tmp_path, URL=URL, MODEL="big")
    found = from_settings(settings.current({"remote_model": "bigger"}))
    assert found is not None
    assert (found.url, found.model) == (URL, "bigger")


def test_key_and_price_come_from_files_of_the_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key_file(tmp_path)
    (tmp_path / "prices.toml").write_text(TABLE)
    found = described(monkeypatch, tmp_path, URL=URL + "/", MODEL="big")
    assert found is not None
    assert found.secret is not None
    assert found.secret.reveal() == KEY
    assert found.price == Price(2.5, 10)
    # The environment wins, and then the file is not even looked at.
    key_file(tmp_path, mode=0o666)
    found = described(monkeypatch, tmp_path, URL=URL, MODEL="big", KEY="other")
    assert found is not None
    assert found.secret is not None
    assert found.secret.reveal() == "other"


@pytest.mark.parametrize(
    ("said", "says"), [({"URL": URL}, "--remote-model"), ({"MODEL": "big"}, "--remote URL")]
)
def test_half_a_remote_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: dict[str, str], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        described(monkeypatch, tmp_path, **said)


@pytest.mark.parametrize("name", ["remote_url", "remote_model", "remote_key"])
def test_a_project_folder_cannot_say_where_text_goes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "edgellm.toml"
    path.write_text(f'{name} = "https://evil.example/v1"\n')
    with pytest.raises(UsageError, match=f"{name} is yours, not the folder's"):
        settings.from_project(path)


# ── prices ──

TABLE = """
[[price]]
url = "https://api.example.com/v1/"
model = "big"
input_usd_per_million = 2.5
output_usd_per_million = 10

[[price]]
url = "http://127.0.0.1:8080/v1"
model = "mine"
input_usd_per_million = 0
output_usd_per_million = 0
"""


def test_a_price_is_found_by_address_and_model_or_unknown(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    assert find_price(path, URL, "big") is None
    path.write_text(TABLE)
    assert find_price(path, URL, "big") == Price(2.5, 10)
    assert find_price(path, "http://127.0.0.1:8080/v1", "mine") == Price(0, 0)
    assert find_price(path, URL, "mine") is None


@pytest.mark.parametrize(
    "text",
    [
        "price = 3",
        "[[price]]\nurl = 'x'",
        TABLE + "[other]\n",
        TABLE.replace("2.5", "'2.5'"),
        TABLE.replace("2.5", "true"),
        TABLE.replace("2.5", "-1"),
        TABLE.replace("2.5", "nan"),
        TABLE.replace('"big"', "3"),
        TABLE + "discount = 3\n",
        "[[price",
    ],
)
def test_a_table_with_a_wrong_row_is_wrong_usage(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(EdgellmError):
        find_price(path, URL, "big")
