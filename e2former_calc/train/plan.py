"""What a configuration file asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from e2former_calc.potentials.training.settings import TrainingSettings

CARD_TEXTS = ("name", "level_of_theory", "training_data", "intended_use", "known_failures", "licence", "citation")
CARD_FIELDS = (*CARD_TEXTS, "refuse_outside")
SECTIONS = ("data", "model", "reference_energies", "training", "card")


@dataclass(frozen=True)
class DataFile:
    """A file of labelled structures, or some of its frames.

    Attributes:
        path: the file.
        index: which frames, as in ASE (":", "::10", "0:1000").
    """

    path: Path
    index: str = ":"

    @classmethod
    def parse(cls, text: str, folder: Path) -> DataFile:
        """From "FILE" or "FILE@INDEX", relative to `folder`; a file whose name holds an @ is found too."""
        name, separator, index = text.rpartition("@")
        if not separator or (folder / text).exists():
            return cls(folder / text)
        return cls(folder / name, index)

    @classmethod
    def parse_all(cls, text: str, folder: Path) -> tuple[DataFile, ...]:
        """As `parse`; wildcards in the name stand for all files that match, in the order of their names.

        Raises:
            ValueError: if none does.
        """
        file = cls.parse(text, folder)
        if file.path.exists() or not any(sign in file.path.name for sign in "*?["):
            return (file,)
        matching = sorted(file.path.parent.glob(file.path.name))
        if not matching:
            raise ValueError(f"no data file matches {str(file.path)!r}")
        return tuple(cls(path, file.index) for path in matching)


@dataclass(frozen=True)
class TrainingPlan:
    """What a configuration file asks for.

    Attributes:
        training: files to learn from.
        validation: number of frames kept aside, or a file.
        test: frames that are only used for the final errors, or None.
        network: `architecture` (e2former_v2 if it is not given, or e2former_v1) and fields of `E2FormerV2Config` or
            `E2FormerV1Config`; those that are not given have the values of `networks.fresh`.
        start_from: model file to fine-tune, or None.
        config: official YAML of `start_from`.
        variant, weights: of an official file, as in `load_potential`.
        head: head of `start_from` that is trained.
        new_head: name of a head that is added to `start_from` as a copy of `head`, and trained instead of it.
        frozen: beginnings of the names of parameters that keep their values.
        reference_energies: eV by element symbol, "least-squares" (of what the network does not explain),
            "isolated-atoms" (energies of the single atoms among the training frames), or "keep" (with `start_from`).
        settings: loss, optimiser, schedule.
        card: fields of the model card.
    """

    training: tuple[DataFile, ...]
    validation: int | DataFile
    test: DataFile | None
    settings: TrainingSettings
    network: Mapping[str, Any] = field(default_factory=dict)
    start_from: str | None = None
    config: Path | None = None
    variant: str | None = None
    weights: str = "raw"
    head: str | None = None
    new_head: str | None = None
    frozen: tuple[str, ...] = ()
    reference_energies: str | Mapping[str, float] = "least-squares"
    card: Mapping[str, Any] = field(default_factory=dict)


def read_plan(path: Path) -> TrainingPlan:
    """Read a configuration file; paths in it are relative to its folder.

    Data files are "FILE", "FILE@INDEX" (frames, as in ASE) and, for training, names with wildcards.

    Raises:
        ValueError: one message that names the section and the key that is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold the sections {', '.join(SECTIONS)}")
    _only(content, SECTIONS, str(path))
    data, model = content.get("data") or {}, dict(content.get("model") or {})
    _only(data, ("training", "validation", "test"), "section data")
    if not data.get("training"):
        raise ValueError(f"{path}: section data needs `training`, a file or a list of files")
    files = data["training"] if isinstance(data["training"], list) else [data["training"]]
    validation = data.get("validation", 50)
    if isinstance(validation, bool) or not isinstance(validation, int | str) or validation == "":
        raise ValueError(f"{path}: `validation` must be a number of frames or a file, got {validation!r}")
    here = path.parent
    start_from, config = model.pop("start_from", None), model.pop("config", None)
    official = {key: model.pop(key) for key in ("variant", "weights") if start_from is not None and key in model}
    head, new_head, frozen = model.pop("head", None), model.pop("new_head", None), tuple(model.pop("frozen", ()))
    if start_from is None and (head or new_head or config):
        raise ValueError(f"{path}: head, new_head and config in section model belong to start_from, which is missing")
    if start_from is not None and model:
        raise ValueError(f"section model: {sorted(model)} cannot be changed together with start_from")
    return TrainingPlan(
        training=tuple(found for file in files for found in DataFile.parse_all(str(file), here)),
        validation=validation if isinstance(validation, int) else DataFile.parse(validation, here),
        test=DataFile.parse(str(data["test"]), here) if data.get("test") else None,
        settings=TrainingSettings.from_mapping(content.get("training") or {}),
        network=model,
        start_from=_path_or_name(start_from, here),
        config=None if config is None else here / config,
        **official,
        head=head,
        new_head=new_head,
        frozen=frozen,
        reference_energies=_references(content.get("reference_energies"), fine_tuned=start_from is not None),
        card=_card(content.get("card") or {}),
    )


def _only(mapping: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{where} must hold lines 'key: value', got {mapping!r}")
    unknown = sorted(set(map(str, mapping)) - set(known))
    if unknown:
        raise ValueError(f"{where} has unknown keys {unknown}; it knows {list(known)}")


def _card(values: Any) -> dict[str, Any]:
    _only(values, CARD_FIELDS, "section card")
    if not isinstance(values.get("refuse_outside", False), bool):
        raise ValueError(f"section card: refuse_outside must be true or false, got {values['refuse_outside']!r}")
    return {name: value if name == "refuse_outside" else str(value) for name, value in values.items()}


def _references(value: Any, *, fine_tuned: bool) -> str | Mapping[str, float]:
    known = ("least-squares", "isolated-atoms", "keep") if fine_tuned else ("least-squares", "isolated-atoms")
    if value is None:
        return "keep" if fine_tuned else "least-squares"
    if value in known or isinstance(value, Mapping):
        chosen: str | Mapping[str, float] = value
        return chosen
    raise ValueError(f"reference_energies must be {', '.join(known)} or a table of eV by element, got {value!r}")


def _path_or_name(start_from: str | None, here: Path) -> str | None:
    """A model file beside the configuration, or the name of a bundled model."""
    if start_from is None or not (here / start_from).exists():
        return start_from
    return str(here / start_from)
