# ruff: noqa: N815 (units in names)
"""From trajectories to a report: the sections in order, and the verdict on top of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from e2former_calc.analysis.trajectory import FrameSource, TrajectoryError, iterate_chunks
from e2former_calc.report.correlations import noise_caveats
from e2former_calc.report.curves import distances_section, rdf_section
from e2former_calc.report.diffusion import diffusion_section
from e2former_calc.report.energies import drift_section, energies_section
from e2former_calc.report.kinetics import kinetics_section
from e2former_calc.report.noise import convention
from e2former_calc.report.section import Quantity, Section, reason_of
from e2former_calc.report.settings import ReportSettings
from e2former_calc.report.shape import backbone_section, coordinates_section, size_section
from e2former_calc.report.sources import Case, Method, Part, Run, check_comparable, close, open_part, survey
from e2former_calc.report.spectra import spectra_section
from e2former_calc.report.stability import Verdicts, judge_stability, stability_section
from e2former_calc.report.torsions import angles_section, torsions_section
from e2former_calc.report.truth import truth_section

Input = str | Path | FrameSource
SECTIONS: tuple[tuple[str, str, Callable[[Case], Section]], ...] = (
    ("distances", "Interatomic distances h(r)", distances_section),
    ("rdf", "Radial distribution functions g(r)", rdf_section),
    ("angles", "Angles between neighbours (ADF)", angles_section),
    ("coordinates", "Bonds, angles and dihedrals", coordinates_section),
    ("torsions", "Torsions", torsions_section),
    ("backbone", "Backbone of the peptide", backbone_section),
    ("size", "Radius of gyration", size_section),
    ("energies", "Energy and temperature", energies_section),
    ("kinetics", "Kinetic energy and equipartition", kinetics_section),
    ("drift", "Conservation of energy", drift_section),
    ("diffusion", "Diffusion", diffusion_section),
    ("spectra", "Vibrational density of states", spectra_section),
    ("truth", "Truth along the rollouts", truth_section),
)


@dataclass(frozen=True)
class TrajectoryFacts:
    """What a report says about one of its trajectories.

    Attributes:
        name: in tables and legends.
        path: its file; None for frames in memory.
        frames: number of frames.
        length_ps: time from the first to the last; None without times.
        level: level of theory, if the file says it.
        first_frame: number in the file of the first of them.
    """

    name: str
    path: Path | None
    frames: int
    length_ps: float | None
    level: str | None
    first_frame: int = 0


@dataclass(frozen=True)
class Verdict:
    """The answer in short.

    Attributes:
        n_stable: rollouts that are stable to the end.
        n_rollouts: all rollouts.
        closeness: "within noise", "beyond noise" or "unknown": the headline number against the noise of the reference.
        headline: that number: h(r) of molecules, the worst g(r) of periodic systems; None if there is none.
        sentences: the verdict in words.
        caveats: those of them that say what short trajectories leave open.
    """

    n_stable: int
    n_rollouts: int
    closeness: str
    headline: Quantity | None
    sentences: tuple[str, ...]
    caveats: tuple[str, ...] = ()

    @property
    def stable(self) -> bool:
        """Whether all rollouts are stable to the end."""
        return self.n_stable == self.n_rollouts


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that is written.

    Attributes:
        verdict: the answer.
        sections: the evidence, those that were skipped included.
        settings: thresholds and ranges.
        rollouts: the trajectories that were judged.
        reference: what they were compared with.
        formula: chemical formula.
        n_atoms: number of atoms.
        temperature_K: target temperature; None if unknown.
        noise: how the noise that numbers stand beside was taken from the reference.
    """

    verdict: Verdict
    sections: tuple[Section, ...]
    settings: ReportSettings
    rollouts: tuple[TrajectoryFacts, ...]
    reference: TrajectoryFacts
    formula: str
    n_atoms: int
    temperature_K: float | None
    noise: str = ""

    def quantities(self) -> list[Quantity]:
        """The numbers of all sections."""
        return [quantity for section in self.sections for quantity in section.quantities]

    def section(self, name: str) -> Section:
        """A section by its name.

        Raises:
            KeyError: if there is none.
        """
        found = next((section for section in self.sections if section.name == name), None)
        if found is None:
            raise KeyError(f"no section {name!r}; there are {', '.join(part.name for part in self.sections)}")
        return found


def analyze_rollouts(
    rollouts: Sequence[Input],
    reference: Input,
    settings: ReportSettings | None = None,
    *,
    truth: Method | None = None,
    model: Method | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Judge rollouts against a reference trajectory.

    Several rollouts count as replicas: their stable parts are taken together in every distribution.

    Args:
        rollouts: files ("FILE@START:STOP" for some of their frames) or trajectories in memory.
        reference: the same of the reference.
        settings: thresholds and ranges; default `ReportSettings()`.
        truth: calculator that frames are recalculated with.
        model: calculator that the rollouts were made with, for its errors on the reference's own frames and for the
            configurational temperature.
        progress: called with what is done next.

    Raises:
        TrajectoryError: if there is no rollout, atoms or boundaries differ, the reference is not finite, or the time
            between frames of a rollout is unknown.
        OSError: if a file cannot be opened.
    """
    if not rollouts:
        raise TrajectoryError("there is no rollout: give one trajectory or more")
    say, chosen = progress or (lambda _: None), settings or ReportSettings()
    with ExitStack() as opened:
        say("reading")
        case = _case(rollouts, reference, chosen, opened)
        say("stability")
        verdicts = judge_stability(case)
        runs = tuple(run.cut(v.usable_frames) for run, v in zip(case.rollouts, verdicts.combined, strict=True))
        cut = Case(runs, case.reference, chosen, truth, model)
        sections = [stability_section(cut, verdicts)]
        for name, title, evaluate in SECTIONS:
            say(title)
            sections.append(_guarded(name, title, evaluate, cut))
        caveats = noise_caveats(cut)
        atoms = case.reference.source.read(0, 1).to_atoms(0)
    return Report(
        verdict=judge(verdicts, sections, caveats),
        sections=tuple(sections),
        settings=chosen,
        rollouts=tuple(_facts(run) for run in case.rollouts),
        reference=_facts(case.reference),
        formula=atoms.get_chemical_formula(),
        n_atoms=len(atoms),
        temperature_K=case.temperature_K,
        noise=convention(cut),
    )


def judge(verdicts: Verdicts, sections: Sequence[Section], caveats: Sequence[str] = ()) -> Verdict:
    """The verdict from the stability and the numbers of all sections.

    Args:
        verdicts: stability of every rollout.
        sections: the evidence.
        caveats: sentences on the noise, if there is something to say.
    """
    by_name = {section.name: section for section in sections}
    curves = (*by_name["distances"].quantities[:1], *by_name["rdf"].quantities)
    headline = max(curves, key=lambda curve: curve.in_units_of_noise or 0.0, default=None)
    beyond = None if headline is None else headline.beyond_noise
    closeness = "unknown" if beyond is None else "beyond noise" if beyond else "within noise"
    compared = [q for section in sections for q in section.quantities if q.beyond_noise is not None]
    sentences = [_stability_sentence(verdicts), _closeness_sentence(headline), *_compared_sentences(compared)]
    told = tuple(caveats) if compared else ()
    return Verdict(verdicts.n_stable, len(verdicts.combined), closeness, headline, (*sentences, *told), told)


def _stability_sentence(verdicts: Verdicts) -> str:
    combined, count = verdicts.combined, len(verdicts.combined)
    if verdicts.n_stable == count:
        lengths = [verdict.stable_ps for verdict in combined]
        span = (
            f"{min(lengths):.4g} ps" if min(lengths) == max(lengths) else f"{min(lengths):.4g} to {max(lengths):.4g} ps"
        )
        return f"Stable: {'the rollout' if count == 1 else f'all {count} rollouts'} to the end ({span})."
    first = min((verdict for verdict in combined if not verdict.survived), key=lambda verdict: verdict.stable_ps)
    which = "the rollout" if count == 1 else f"{count - verdicts.n_stable} of {count} rollouts, the first one"
    return f"Not stable: {which} fails after {first.stable_ps:.4g} ps, in frame {first.frame}: {first.reason}."


def _closeness_sentence(headline: Quantity | None) -> str:
    if headline is None or headline.value is None:
        return "How close the rollouts are to the reference could not be measured."
    unit = "" if headline.unit == "1" else f" {headline.unit}"
    text = f"The {headline.name} is {headline.value:.3g}{unit}"
    ratio, limit = headline.in_units_of_noise, headline.noise_upper_95
    if ratio is None or limit is None:
        return f"{text}; the reference is too short to tell its noise."
    seen = (
        "a perfect model could look the same"
        if not headline.beyond_noise
        else "sampling alone does not explain the difference"
    )
    return (
        f"{text}, {ratio:.2g} times the noise of sampling (a perfect model: {headline.noise_floor:.3g}{unit} on "
        f"average, 95 % limit {limit:.3g}{unit}): {seen}."
    )


def _compared_sentences(compared: Sequence[Quantity]) -> list[str]:
    if not compared:
        return []
    beyond = sorted((q for q in compared if q.beyond_noise), key=lambda q: -(q.in_units_of_noise or 0.0))
    if not beyond:
        return [f"All {len(compared)} numbers that have a noise level are within it."]
    worst = ", ".join(f"{q.name} ({q.in_units_of_noise or 0.0:.2g} times)" for q in beyond[:3])
    return [f"Beyond their noise: {len(beyond)} of {len(compared)} numbers, most of all {worst}."]


def _case(rollouts: Sequence[Input], reference: Input, settings: ReportSettings, opened: ExitStack) -> Case:
    known = survey("reference", _opened(reference, opened))
    for _ in iterate_chunks(known.source):
        pass
    runs: list[Run] = []
    for position, given in enumerate(rollouts):
        name = _name(given, position, {run.name for run in runs})
        run = survey(name, _opened(given, opened), frame_spacing_fs=settings.frame_spacing_fs)
        check_comparable(run, known)
        runs.append(run)
    if settings.expected_ps is None and all(len(run.source) < 2 for run in runs):
        raise TrajectoryError(
            f"no rollout has more than one frame ({', '.join(run.name for run in runs)}): nothing moved that could be "
            "called stable; give a trajectory, or state the length it should have had with --expected-ps"
        )
    return Case(tuple(runs), known, settings)


def _opened(given: Input, opened: ExitStack) -> FrameSource:
    if not isinstance(given, str | Path):
        return given
    source = open_part(given)
    opened.callback(close, source)
    return source


def _name(given: Input, position: int, taken: set[str]) -> str:
    """Short and unique: the name of the file, its path if that is taken, or a number."""
    candidates = [f"rollout {position + 1}"]
    if isinstance(given, str | Path):
        file, at, part = str(given).rpartition("@")
        exists = not at or Path(given).exists()
        candidates = [Path(given).stem if exists else f"{Path(file).stem}@{part}", str(given), *candidates]
    return next((name for name in candidates if name not in taken), f"rollout {position + 1} ({position + 1} in all)")


def _guarded(name: str, title: str, evaluate: Callable[[Case], Section], case: Case) -> Section:
    """What a trajectory does not allow is no reason to do without the other sections."""
    try:
        return evaluate(case)
    except TrajectoryError as error:
        return Section(name, title, skipped=f"{reason_of(error)}.")


def _facts(run: Run) -> TrajectoryFacts:
    stated = next((str(run.attributes[key]) for key in ("level", "method") if key in run.attributes), None)
    first = run.source.start if isinstance(run.source, Part) else 0
    return TrajectoryFacts(run.name, run.path, len(run.source), run.length_ps, stated, first)
