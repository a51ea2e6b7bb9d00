"""The training domain of a network, and the distances that come with its predictions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from e2former_calc.potentials.applicability import TrainingDomain
from e2former_calc.potentials.potential import EnergyPotential
from e2former_calc.potentials.system import System
from e2former_calc.potentials.training.dataset import Dataset
from e2former_calc.potentials.training.domain import measure_domain, representative_frames

ENERGY = frozenset({"energy"})


@pytest.fixture
def aware(potential: EnergyPotential, dataset: Dataset) -> EnergyPotential:
    """The network with the domain of its training frames."""
    potential.eval()
    potential.domain = measure_domain(potential, dataset, None)
    return potential


def atom(number: int) -> System:
    return System.single([[0.0, 0.0, 0.0]], [number])


def with_frames(dataset: Dataset, systems: list[System]) -> Dataset:
    """More frames, with labels of zero."""
    return Dataset(
        systems=(*dataset.systems, *systems),
        energy=torch.cat([dataset.energy, torch.zeros(len(systems), dtype=torch.float64)]),
        forces=(*dataset.forces, *(torch.zeros_like(s.positions) for s in systems)),
        stress=(*dataset.stress, *(None for _ in systems)),
        source=dataset.source,
    )


def test_training_atoms_are_inside(aware, dataset):
    found = torch.cat([aware(system, properties=ENERGY).extrapolation for system in dataset.systems])
    assert float(found.median()) < 1.0


def test_a_broken_bond_is_outside(aware, dataset):
    system = dataset.systems[0]
    stretched = system.positions.clone()
    stretched[1] += 2 * (stretched[1] - stretched[0])
    near, far = (aware(s, properties=ENERGY).extrapolation.max() for s in (system, system.with_positions(stretched)))
    assert float(far) > 3 * float(near)


def test_distances_do_not_change_when_the_molecule_is_turned(aware, dataset, generator):
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    system = dataset.systems[0]
    turned = aware(system.with_positions(system.positions @ rotation.T + 3.0), properties=ENERGY)
    torch.testing.assert_close(turned.extrapolation, aware(system, properties=ENERGY).extrapolation, rtol=1e-3, atol=0)


def test_a_batch_has_the_distances_of_its_structures(aware, dataset):
    together = aware(System.stack(dataset.systems[:3]), properties=ENERGY).extrapolation
    alone = torch.cat([aware(system, properties=ENERGY).extrapolation for system in dataset.systems[:3]])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=0)


def test_a_domain_changes_no_prediction(aware, dataset):
    properties = frozenset({"energy", "forces"})
    told = aware(dataset.systems[0], properties=properties)
    aware.domain = None
    plain = aware(dataset.systems[0], properties=properties)
    assert plain.extrapolation is None
    assert torch.equal(told.energies, plain.energies)
    assert torch.equal(told.forces, plain.forces)


def test_distances_carry_no_gradient(aware, dataset):
    prediction = aware(dataset.systems[0], properties=frozenset({"forces"}), create_graph=True)
    assert prediction.energy.requires_grad
    assert not prediction.extrapolation.requires_grad


def test_the_domain_follows_the_potential_to_another_device(aware):
    assert aware.to("meta").domain.whitening.device.type == "meta"


def test_the_arithmetic_of_the_network_does_not_matter(aware, dataset):
    single = aware(dataset.systems[0], properties=ENERGY).extrapolation
    aware.model.double()
    assert aware.domain.mean.dtype == torch.float32
    torch.testing.assert_close(single, aware(dataset.systems[0], properties=ENERGY).extrapolation, rtol=1e-3, atol=0)


def test_the_same_frames_give_the_same_domain(aware, dataset):
    again = measure_domain(aware, dataset, None)
    assert all(torch.equal(getattr(again, name), tensor) for name, tensor in vars(aware.domain).items())


def test_validation_frames_set_the_limit(aware, dataset):
    far = [system.with_positions(1.3 * system.positions) for system in dataset.systems * 3]
    distant = replace(with_frames(dataset, far).subset(range(12, 48)), source="stretched water")
    wide = measure_domain(aware, dataset, distant)
    aware.domain, narrow = wide, aware(dataset.systems[0], properties=ENERGY).extrapolation
    assert bool((aware(dataset.systems[0], properties=ENERGY).extrapolation < 0.5 * narrow).all())


def test_single_atoms_are_left_out(aware, dataset):
    with_atoms = measure_domain(aware, with_frames(dataset, [atom(1), atom(8)]), None)
    assert all(torch.equal(getattr(with_atoms, name), tensor) for name, tensor in vars(aware.domain).items())


def test_nothing_but_single_atoms_has_no_domain(aware, dataset):
    with pytest.raises(ValueError, match="no frame of water, EMT has two atoms"):
        measure_domain(aware, with_frames(dataset.subset([]), [atom(1)]), None)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_a_few_frames_have_a_domain(aware, dataset, frames):
    assert isinstance(measure_domain(aware, dataset.subset(range(frames)), None), TrainingDomain)


@pytest.mark.parametrize(("atoms", "frames"), [(1, [0]), (6, [0, 6, 11]), (1000, list(range(12)))])
def test_frames_are_chosen_evenly(dataset, atoms, frames):
    assert set(representative_frames(dataset, atoms)) <= set(range(12))
    assert set(frames) <= set(representative_frames(dataset, atoms))


def test_every_frame_with_a_rare_element_is_looked_at(dataset):
    rare = System.single([[0, 0, 0], [0, 0, 1.0]], [9, 1])
    assert 12 in representative_frames(with_frames(dataset, [rare]), 3)
