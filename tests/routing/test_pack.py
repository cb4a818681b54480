from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic import records

from edgellm.errors import Corrupt, Incompatible, NotFound, UsageError
from edgellm.routing.confidence import pack as packs
from edgellm.routing.confidence.calibrate import choose, make_pack
from edgellm.routing.confidence.pack import Pack
from edgellm.routing.evaluation.metrics import auroc, ece


@pytest.fixture(scope="module")
def made() -> Pack:
    return make_pack(records(1500))


def test_a_pack_tells_right_answers_from_wrong_ones_it_never_saw(made: Pack) -> None:
    test = records(400, seed=9, split="test")
    p = np.array([made.after(g.observed) for g in test.graded])
    assert auroc(p, test.correct) > 0.9
    assert ece(p, test.correct) < 0.1


def test_a_saved_pack_says_the_same(made: Pack, tmp_path: Path) -> None:
    path = tmp_path / "model@exact.npz"
    packs.save(made, path)
    again = packs.load(path)
    assert again.about == made.about
    for g in records(40, seed=3).graded:
        assert again.after(g.observed) == pytest.approx(made.after(g.observed), abs=2e-3)
        assert again.before(g.observed) == pytest.approx(made.before(g.observed), abs=2e-3)
    assert again.certify(0.2) == made.certify(0.2)
    assert path.stat().st_size < 1_000_000
    assert list(tmp_path.iterdir()) == [path]


def test_certificates_come_from_answers_that_nothing_was_fitted_on() -> None:
    chosen = choose(records(300))
    assert {g.split for g in chosen.fit} == {"calibration"}
    assert {g.split for g in chosen.kept} == {"dev"}
    mixed = choose(records(300, split="mine"))
    assert len(mixed.kept) == 100
    assert not {g.id for g in mixed.fit} & {g.id for g in mixed.kept}


def test_a_pack_for_other_weights_is_refused(made: Pack) -> None:
    made.check("ab" * 32)
    with pytest.raises(Incompatible, match=r"for other weights .*route calibrate"):
        made.check("cd" * 32)


def test_too_few_graded_answers_make_no_pack() -> None:
    with pytest.raises(UsageError, match=r"right answers to learn from and 20 are needed"):
        make_pack(records(60))


def test_an_observation_without_hidden_states_is_judged_by_its_tokens(made: Pack) -> None:
    from dataclasses import replace

    observed = replace(records(1).graded[0].observed, hidden=None)
    assert 0 < made.after(observed) < 1
    assert made.before(observed) is None


def test_an_answer_without_a_token_still_gets_a_probability(made: Pack) -> None:
    from dataclasses import replace

    observed = replace(records(1).graded[0].observed, tokens=(), text="")
    assert 0 < made.after(observed) < 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense", b"\x80\x04K\x01."])
def test_a_file_that_is_no_pack_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(Corrupt, match=r"bad\.npz is not a confidence pack"):
        packs.load(path)


def test_a_pack_with_pickled_arrays_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "evil.npz"
    np.savez(path, meta=np.array([{"a": 1}], object))
    with pytest.raises(Corrupt, match="not a confidence pack"):
        packs.load(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokens.weights", lambda a: a[:-1]),
        ("trees.features", lambda a: a + 900),
        ("near.landmarks", lambda a: a[:, :-1]),
        ("tokens.mean", lambda a: a * np.nan),
        ("kept.correct", lambda a: a[:-1]),
    ],
)
def test_a_pack_whose_arrays_do_not_fit_together_is_refused_at_load(
    made: Pack, tmp_path: Path, name: str, change: object
) -> None:
    path = tmp_path / "odd.npz"
    packs.save(made, path)
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    arrays[name] = change(arrays[name])  # type: ignore[operator]
    np.savez(path, **arrays)
    with pytest.raises(Corrupt, match="not a confidence pack"):
        packs.load(path)


def test_a_missing_pack_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="edgellm route calibrate"):
        packs.load(tmp_path / "none.npz")
