"""From a path or a name to a model and to a `Potential`; no network access, no unpickling of classes."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
import yaml
from torch import Tensor

from e2former_calc.checkpoint.card import UNKNOWN, ModelCard
from e2former_calc.checkpoint.clusters import assign_clusters
from e2former_calc.checkpoint.errors import CheckpointError
from e2former_calc.checkpoint.native import NativeContent, read_native
from e2former_calc.checkpoint.official_v1 import (
    WeightsChoice,
    build_official_v1,
    initialize_v1,
    is_official_v1,
    load_weights_v1,
    read_content,
)
from e2former_calc.checkpoint.official_v2 import build_official_v2, initialize, is_official_v2, load_weights
from e2former_calc.checkpoint.reference_energies import covered_elements, reference_energies
from e2former_calc.potentials.applicability import TrainingDomain
from e2former_calc.potentials.e2former_v1 import E2FormerV1, E2FormerV1Config
from e2former_calc.potentials.e2former_v2 import E2FormerV2, E2FormerV2Config
from e2former_calc.potentials.e2former_v2.official_config import read_official_config
from e2former_calc.potentials.inference import choose_execution
from e2former_calc.potentials.interface import ForceMode, Implementation, NeighborCap
from e2former_calc.potentials.potential import EnergyPotential

MODELS_FOLDER = Path(__file__).parent.parent / "models"
DTYPES = {"float32": torch.float32, "float64": torch.float64}
DEFAULT_MODEL = "ala3-gfn2"
"""Bundled model that is used if none is named."""
IMPLEMENTATIONS: tuple[Implementation, ...] = ("reference", "blocked")
TRAINED = ("best_checkpoint.pt", "checkpoint.pt")
"""What the FairChem trainer calls its best and its last model."""
TRAINER_FILES = ("normalizers.pt", "element_references.pt")
"""What else it writes beside them; the models hold the same."""
OFFICIAL_KERNELS: dict[str, Implementation] = {"math": "reference", "memory_efficient": "blocked", "flash": "blocked"}
"""Names of the official E2Former README for execution choices of the same mathematics."""

V1_USE = (
    "what its authors trained it for; the execution choices math, memory_efficient and flash of their README are the "
    "same mathematics, here implementation reference, blocked and blocked"
)
V1_FAILURES = (
    "by design of the architecture the energy jumps where a pair crosses the cutoff or neighbours change rank: it is "
    "not conserved in long NVE runs"
)

Network = E2FormerV1 | E2FormerV2
NetworkConfig = E2FormerV1Config | E2FormerV2Config


@dataclass(frozen=True)
class LoadedModel:
    """A network with everything that its file says about it.

    Attributes:
        path: the file.
        model: the network in float32, ready for inference.
        card: its description.
        config: its configuration.
        reference_energies: eV by atomic number, for each head.
        elements: atomic numbers that each head covers.
        domains: where each head was trained, if that is known.
    """

    path: Path
    model: Network
    card: ModelCard
    config: NetworkConfig
    reference_energies: Mapping[str, Tensor]
    elements: Mapping[str, frozenset[int]]
    domains: Mapping[str, TrainingDomain] = field(default_factory=dict)

    def content(self) -> NativeContent:
        """What `write_native` stores."""
        return NativeContent(
            architecture=self.card.architecture,
            config=self.config.to_dict(),
            elements=dict(self.elements),
            card=self.card,
            state=self.model.state_dict(),
            reference_energies=dict(self.reference_energies),
            domains=dict(self.domains),
        )

    def choose_head(self, head: str | None) -> str:
        """The head to use.

        Raises:
            CheckpointError: if it must be named, or is not there.
        """
        available = list(self.card.heads)
        chosen = head if head is not None else self.card.default_head
        if chosen is None:
            raise CheckpointError(f"{self.path.name} has several heads; choose one with head=...: {available}")
        if chosen not in available:
            raise CheckpointError(f"{self.path.name} has no head {chosen!r}; choose head=... from {available}")
        return chosen


def load_potential(
    path_or_name: str | Path,
    config: str | Path | Mapping[str, Any] | None = None,
    head: str | None = None,
    *,
    variant: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    forces: Literal["auto", "gradient", "head"] = "auto",
    neighbor_cap: NeighborCap = "official",
    implementation: str = "auto",
    strict: bool = True,
    weights: str = "raw",
    clusters: Sequence[int] | str | None = None,
) -> EnergyPotential:
    """Load a trained model.

    Args:
        path_or_name: an official checkpoint (.pt), a file of ours (.safetensors), a bundled model's name, or the folder
            of a training run.
        config: the official YAML (path or mapping); by default the only one in the checkpoint's folder.
        head: output head; may be omitted if there is only one.
        variant: code base that an official file belongs to. E2Former-V2: "main" or "legacy", which nothing in the file
            tells apart. E2Former: "scitix", "modular", "microsoft" or "lsr"; needed only where the file leaves it open.
        device: "auto" takes CUDA if there is a usable device.
        dtype: "float32" or "float64", the arithmetic of the network.
        forces: "auto" is what the model was trained for; "gradient" and "head" choose.
        neighbor_cap: "official" reproduces the official selection of neighbours, if the model was trained with one;
            "none" keeps all.
        implementation: "reference" (plain torch), "blocked" (less memory), "fused" (native kernels and tables on the
            CPU; see `potentials.inference`), or "auto": "fused" where it exists and is faster, in float32, else
            "blocked". Also "math" (which is "reference"), "memory_efficient" and "flash" (which are "blocked").
        strict: False also evaluates elements that the model was not trained on.
        weights: "raw", or "ema" for the running average in a full training state of the FairChem trainer.
        clusters: for an original E2Former with clusters: cluster of each atom, integers from 0, which a model with
            fragments needs; of one with k-means also "official", the assignment of scikit-learn.

    Returns:
        A `Potential` (eV, Å).

    Raises:
        CheckpointError: if the file, its configuration or the head cannot be used; lists everything at once.
        FileNotFoundError: if there is no such file and no such bundled model.
        ValueError: for an unknown device, dtype or option.
    """
    loaded = load_model(path_or_name, config, variant=variant, weights=weights)
    chosen = loaded.choose_head(head)
    trained = cast(ForceMode, loaded.card.forces)
    if forces not in ("auto", "gradient", "head"):
        raise ValueError(f"`forces` must be 'auto', 'gradient' or 'head', got {forces!r}")
    loaded.model.implementation = resolve_implementation(implementation)
    assign_clusters(loaded.model, clusters)
    potential = EnergyPotential(
        loaded.model,
        head=chosen,
        reference_energies=loaded.reference_energies,
        elements=loaded.elements[chosen],
        force_mode=trained if forces == "auto" else forces,
        neighbor_cap="none" if neighbor_cap == "official" and _keeps_every_pair(loaded) else neighbor_cap,
        uses_charge=loaded.card.uses_charge,
        uses_spin=loaded.card.uses_spin,
        compositions=frozenset(loaded.card.compositions),
        strict=strict,
        domain=loaded.domains.get(chosen),
        refuse_outside=loaded.card.refuse_outside,
    )
    potential.model.to(dtype=resolve_dtype(dtype))
    return choose_execution(potential.to(resolve_device(device)), implementation)


def _keeps_every_pair(loaded: LoadedModel) -> bool:
    """True for an original E2Former that was trained by this package, without the limits of the official code."""
    return isinstance(loaded.config, E2FormerV1Config) and loaded.card.max_neighbors is None


def load_model(
    path_or_name: str | Path,
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    variant: str | None = None,
    weights: str = "raw",
) -> LoadedModel:
    """Load a network with its description; arguments and errors as in `load_potential`."""
    path = resolve_path(path_or_name)
    chosen = resolve_weights(weights)
    if path.suffix == ".safetensors":
        if config is not None or variant is not None:
            raise CheckpointError(f"{path.name} carries its own configuration: leave out `config` and `variant`")
        if chosen != "raw":
            raise CheckpointError(f"{path.name} holds one set of weights only: leave out `weights`")
        return _load_native(path)
    content = _unpickle(path)
    if is_official_v1(content):
        return _load_official_v1(path, content, config, variant=variant, weights=chosen)
    if chosen != "raw":
        raise CheckpointError(f"{path.name} holds no running average of the weights: use weights='raw'")
    return _load_official(path, content, config, variant)


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.stem for path in MODELS_FOLDER.glob("*.safetensors"))


def bundled_models_for(formula: str) -> list[str]:
    """Names of the bundled models that are meant for structures of this formula (Hill order)."""
    cards = {name: read_native(MODELS_FOLDER / f"{name}.safetensors").card for name in bundled_models()}
    return [name for name, card in cards.items() if not card.compositions or formula in card.compositions]


def resolve_path(path_or_name: str | Path) -> Path:
    """The file behind a path, a bundled model's name, or a folder of a training run.

    Raises:
        CheckpointError: for a folder that holds no or several models.
        FileNotFoundError: naming the bundled models.
    """
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return path
    bundled = MODELS_FOLDER / f"{path_or_name}.safetensors"
    if bundled.is_file():
        return bundled
    if path.is_dir():
        return _model_in(path)
    names = ", ".join(bundled_models()) or "none"
    raise FileNotFoundError(f"no model file {str(path_or_name)!r}; bundled models: {names}")


def absolute_path(path: Any) -> Any:
    """Existing files and folders by their full path, so that a recipe works elsewhere; anything else as it is."""
    if isinstance(path, str | Path) and Path(path).expanduser().exists() and str(path) not in bundled_models():
        return Path(path).expanduser().resolve()
    return path


def _model_in(folder: Path) -> Path:
    """The only model of a folder; in those of the FairChem trainer the best one, which lies beside the last one."""
    found = sorted(path for path in folder.iterdir() if path.suffix in (".pt", ".safetensors") and path.is_file())
    models = [path for path in found if path.name not in TRAINER_FILES]
    named = [path for name in TRAINED for path in models if path.name == name]
    if named or len(models) == 1:
        return (named or models)[0]
    names = ", ".join(path.name for path in models) or "none"
    raise CheckpointError(f"the folder {folder} must hold one model or {TRAINED[0]}, it holds {names}: name the file")


def resolve_device(device: str | torch.device) -> torch.device:
    """Torch device; "auto" takes CUDA if there is one.

    Raises:
        ValueError: if the device does not exist on this machine.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"`device` {device!r} is not a torch device: {error}") from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`device` is {str(device)!r} but torch sees no CUDA device: use device='cpu' or 'auto'")
    return resolved


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Torch dtype of the network.

    Raises:
        ValueError: for anything but float32 and float64.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"`dtype` must be 'float32' or 'float64', got {dtype!r}")
    return DTYPES[name]


def resolve_weights(weights: str) -> WeightsChoice:
    """Which weights of a training state to take.

    Raises:
        ValueError: for anything but raw and ema.
    """
    choices: dict[str, WeightsChoice] = {"raw": "raw", "ema": "ema"}
    if weights not in choices:
        raise ValueError(f"`weights` must be 'raw' or 'ema', got {weights!r}")
    return choices[weights]


def resolve_implementation(implementation: str) -> Implementation:
    """How the plain module carries out edge operations.

    Raises:
        ValueError: for an implementation that does not exist (yet).
    """
    if implementation in ("auto", "fused"):
        return "blocked"
    implementation = OFFICIAL_KERNELS.get(implementation, implementation)
    if implementation not in IMPLEMENTATIONS:
        choices = ["auto", "fused", *IMPLEMENTATIONS]
        raise ValueError(f"`implementation` must be one of {choices}, got {implementation!r}")
    return implementation


def _load_native(path: Path) -> LoadedModel:
    content = read_native(path)
    try:
        config, model = _network(path, content)
    except CheckpointError:
        raise
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged or from a newer version: {error}") from None
    for head, domain in content.domains.items():
        if domain.channels != config.channels:
            raise CheckpointError(
                f"{path} is damaged: the training domain of head {head!r} has {domain.channels} channels, "
                f"the network {config.channels}"
            )
    return LoadedModel(path, model, content.card, config, content.reference_energies, content.elements, content.domains)


def _network(path: Path, content: NativeContent) -> tuple[NetworkConfig, Network]:
    """The network of one of our files, with its weights."""
    if content.architecture == "e2former_v1":
        config_v1 = E2FormerV1Config.from_dict(content.config)
        return config_v1, load_weights_v1(initialize_v1(config_v1), content.state)
    if content.architecture == "e2former_v2":
        config = E2FormerV2Config.from_dict(content.config)
        return config, load_weights(initialize(config), content.state)
    raise CheckpointError(f"{path} holds a {content.architecture!r} model, which this version cannot run: upgrade")


def _load_official_v1(
    path: Path,
    content: Mapping[str, Any],
    config: str | Path | Mapping[str, Any] | None,
    *,
    variant: str | None,
    weights: WeightsChoice,
) -> LoadedModel:
    try:
        official = read_content(content, weights)
        inside = official.values if config is None else None
        parsed, model = build_official_v1(official, inside or _read_config(path, config), variant)
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from None
    references = dict.fromkeys(parsed.heads, official.references)
    elements = dict.fromkeys(parsed.heads, covered_elements(official.references))
    card = _official_card(path, parsed, model, elements)
    return LoadedModel(path, model, card, parsed, references, elements)


def _load_official(
    path: Path, content: Any, config: str | Path | Mapping[str, Any] | None, variant: str | None
) -> LoadedModel:
    if not is_official_v2(content):
        keys = sorted(map(str, content))[:8] if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path} is not a checkpoint of a known layout (E2Former, E2Former-V2); it holds {keys}")
    values = _read_config(path, config)
    try:
        parsed = read_official_config(values, variant=variant or "main")
    except ValueError as error:
        raise CheckpointError(f"{path.name}: {error}") from None
    model = build_official_v2(parsed, content["model"])
    references = {name: reference_energies(name) for name in parsed.heads}
    elements = {name: covered_elements(table) for name, table in references.items()}
    return LoadedModel(path, model, _official_card(path, parsed, model, elements), parsed, references, elements)


def _official_card(
    path: Path, config: NetworkConfig, model: Network, elements: Mapping[str, frozenset[int]]
) -> ModelCard:
    original = isinstance(config, E2FormerV1Config)
    uses_state = config.uses_charge if isinstance(config, E2FormerV1Config) else True
    return ModelCard(
        name=path.stem,
        architecture="e2former_v1" if original else "e2former_v2",
        variant=config.variant,
        cutoff=config.cutoff,
        max_neighbors=config.max_neighbors,
        elements=tuple(sorted(frozenset().union(*elements.values()))),
        heads=config.heads,
        default_head=config.heads[0] if len(config.heads) == 1 else None,
        forces="gradient" if config.gradient_forces else "head",
        uses_charge=uses_state,
        uses_spin=uses_state,
        parameters=sum(p.numel() for p in model.parameters()),
        intended_use=V1_USE if original else UNKNOWN,
        known_failures=_known_failures(config),
        citation="E2Former, arXiv:2501.19216" if original else "E2Former-V2, arXiv:2601.16622",
        source=path.name,
        source_sha256=sha256(path),
    )


def _known_failures(config: NetworkConfig) -> str:
    if not isinstance(config, E2FormerV1Config):
        return UNKNOWN
    failures = [V1_FAILURES]
    if config.energy_shift:
        failures.append(
            f"every structure has a constant of {config.energy_shift:g} eV (mean of the normalizer), so energies of "
            "structures of other size do not add up"
        )
    if config.variant == "microsoft" and config.encoder != "none":
        failures.append(
            "the encoder normalises over all atoms of a structure, however far: energies of distant molecules do not "
            "add up"
        )
    return "; ".join(failures)


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpickle(path: Path) -> Any:
    """Tensors and plain containers only; `slice` appears in official files and is harmless."""
    with path.open("rb"):
        pass  # a file that may not be read raises its own OSError; torch raises one for damaged files
    try:
        with torch.serialization.safe_globals([slice]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0] if str(error) else "unpickling failed"
        raise CheckpointError(
            f"{path} cannot be read safely: {reason}. Files that need their classes unpickled are not loaded."
        ) from None
    except (RuntimeError, OSError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is truncated or not a torch checkpoint: {reason}") from None


def _read_config(path: Path, config: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    if config is None:
        found = sorted([*path.parent.glob("*.yaml"), *path.parent.glob("*.yml")])
        if len(found) != 1:
            names = [f.name for f in found] or "none"
            raise CheckpointError(
                f"{path.name} needs its official YAML: expected exactly one beside it, found {names}; pass config=..."
            )
        file = found[0]
    else:
        file = Path(config).expanduser()
        if not file.is_file():
            raise CheckpointError(f"no configuration file {str(config)!r}")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{file} is not an official configuration: expected a mapping at top level")
    return values
