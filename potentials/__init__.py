"""Interatomic potentials: from positions to energies, forces and stress, in torch."""
