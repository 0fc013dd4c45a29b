"""Doctor: what works follows from the installed packages, and remedies name the extra."""

from __future__ import annotations

import json

import pytest

from fewstep.runtime import doctor


def _without(monkeypatch: pytest.MonkeyPatch, *absent: str, **extra: str) -> doctor.Diagnosis:
    real = doctor._version

    def version(package: str) -> str | None:
        return None if package in absent else extra.get(package) or real(package)

    monkeypatch.setattr(doctor, "_version", version)
    return doctor.diagnose()


def test_everything_installed() -> None:
    diagnosis = doctor.diagnose()
    assert all(ability.works for ability in diagnosis.abilities)
    assert diagnosis.warnings == ()
    assert int(diagnosis.machine["cores"]) >= 1


@pytest.mark.parametrize(
    ("absent", "works", "remedies"),
    [
        ("torch", [True, False], ["", "pip install 'fewstep[export]'"]),
        (
            "onnxruntime",
            [False, False],
            ["pip install 'fewstep[cpu]'", "pip install 'fewstep[export]'"],
        ),
    ],
)
def test_remedy_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, absent: str, works: list[bool], remedies: list[str]
) -> None:
    abilities = _without(monkeypatch, absent).abilities
    assert [ability.works for ability in abilities] == works
    assert [ability.remedy for ability in abilities] == remedies
    assert all(absent in ability.detail for ability in abilities if not ability.works)


def test_two_onnxruntimes_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    diagnosis = _without(monkeypatch, **{"onnxruntime-gpu": "1.0"})
    assert "own the same module" in diagnosis.warnings[0]


def test_diagnosis_is_json() -> None:
    assert json.loads(json.dumps(doctor.diagnose().as_dict()))["machine"]["python"]
