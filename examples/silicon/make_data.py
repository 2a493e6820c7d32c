#!/usr/bin/env python3
"""Make the silicon demo data set with Quantum ESPRESSO.

    python make_data.py --work scratch --pw pw.x \\
        --pseudo-dir /usr/share/espresso/pseudo --out silicon.hdf5

Builds structures from fixed seeds, labels each with pw.x, and writes the data
set (DeePMD-kit ``hdf5`` layout) and, beside it, ``dft_reference.json``.  The run
takes under an hour on one core and can be stopped and started again: a finished
pw.x run is never repeated.  Needs numpy, scipy, h5py, ase and pw.x (Debian:
``quantum-espresso`` and ``quantum-espresso-data``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import h5py
import numpy as np
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.eos import EquationOfState
from ase.neighborlist import neighbor_list
from ase.units import GPa, kB
from qe import PSEUDO, SETTINGS, Frames, Kpoints, Runner, md_input, parse, scf_input, version

SEED = 20
A_START = 5.41  # Angstrom; only the centre of the volume scan, a0 itself is fitted
MASS = 28.0855  # amu
AMU_A2_FS2 = 103.642697  # eV per amu (Angstrom/fs)^2

# Liquid molecular dynamics: one fixed cell, NVE segments joined by a thermostat.
MD_TEMPERATURE = 2500.0  # K
MD_VOLUME = 18.5  # Angstrom^3 per atom
MD_DT = 3.0  # fs
MD_SEGMENT = 20  # steps between two thermostat kicks
MD_SEGMENTS = 5
MD_TAU = 40.0  # fs, relaxation time of the thermostat
MD_START = 600.0  # K; the random start heats itself as it relaxes
MD_EQUILIBRATION = 40  # steps left out of g(r)
MD_GAP = 8  # steps between the training and the validation part of the run

# Supercells of the two-atom cell.
CELLS = {
    "cubic": [[-1, 1, 1], [1, -1, 1], [1, 1, -1]],  # 8 atoms
    "flat": [[2, 0, 0], [0, 2, 0], [0, 0, 1]],  # 8 atoms
    "fcc": [[2, 0, 0], [0, 2, 0], [0, 0, 2]],  # 16 atoms
}


# ---------------------------------------------------------------- structures


def crystal(cell: str, a: float = A_START) -> Atoms:
    """Perfect diamond structure in one of :data:`CELLS`, lattice constant ``a``."""
    return make_supercell(bulk("Si", "diamond", a), CELLS[cell])


KPOINTS = {cell: Kpoints.folded(crystal(cell, 1.0).cell.array) for cell in CELLS}
"""The same points of the crystal's Brillouin zone for every supercell."""


def strained(atoms: Atoms, rng: np.random.Generator, size: float) -> Atoms:
    """Apply a random symmetric strain; ``size`` is the spread of each component."""
    strain = rng.normal(0.0, size, (3, 3))
    strain = np.clip((strain + strain.T) / 2, -2.5 * size, 2.5 * size)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return atoms


def rattled(cell: str, rng: np.random.Generator, strain: float, low: float, high: float) -> Atoms:
    """Strained crystal with Gaussian displacements of ``low`` to ``high`` Angstrom.

    In silicon 0.05 Angstrom per component holds as much potential energy as
    some 300 K, and 0.11 Angstrom as some 1500 K.
    """
    atoms = strained(crystal(cell), rng, strain)
    atoms.positions += rng.normal(0.0, rng.uniform(low, high), atoms.positions.shape)
    return atoms


def disordered(rng: np.random.Generator, volume: float, closest: float = 2.2) -> Atoms:
    """16 random atoms at ``volume`` Angstrom^3 per atom, pushed ``closest`` Angstrom apart."""
    atoms = crystal("fcc", (8 * volume) ** (1 / 3))
    while True:
        atoms.set_scaled_positions(rng.random((16, 3)))
        for _ in range(500):
            i, d, vector = neighbor_list("idD", atoms, closest)
            if len(i) == 0:
                return atoms
            push = (0.3 * (closest + 0.02 - d) / d)[:, None] * vector
            np.subtract.at(atoms.positions, i, push)


def upright(atoms: Atoms) -> Atoms:
    """Turn the cell lower triangular, the form most MD engines ask for."""
    cell, _ = atoms.cell.standard_form()
    turned = Atoms(atoms.symbols, cell=cell, scaled_positions=atoms.get_scaled_positions(), pbc=True)
    return turned


# --------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Kind:
    """One family of single-point configurations in one cell shape of :data:`CELLS`."""

    name: str
    cell: str
    count: int
    make: Callable[[int, np.random.Generator], Atoms]

    def structures(self) -> list[Atoms]:
        return [upright(self.make(i, np.random.default_rng([SEED, i, *self.name.encode()]))) for i in range(self.count)]


N_VOLUMES = 25


def volume_scan(i: int, _: np.random.Generator) -> Atoms:
    """Crystal number ``i`` of the energy-volume curve, -14 % to +16 % in volume."""
    return crystal("cubic", A_START * np.linspace(0.95, 1.05, N_VOLUMES)[i])


def axial(_: int, rng: np.random.Generator) -> Atoms:
    """Crystal stretched along its cubic axes by up to 5 %."""
    atoms = crystal("cubic")
    atoms.set_cell(atoms.cell.array * (1 + rng.uniform(-0.05, 0.05, 3))[:, None], scale_atoms=True)
    return atoms


KINDS = [
    Kind("crystal_8", "cubic", N_VOLUMES, volume_scan),
    Kind("axial_8", "cubic", 24, axial),
    Kind("strain_8", "flat", 50, lambda i, rng: rattled("flat", rng, 0.03, 0.0, 0.02)),
    Kind("rattle_8", "flat", 93, lambda i, rng: rattled("flat", rng, 0.015, 0.03, 0.14)),
    Kind("rattle_16", "fcc", 9, lambda i, rng: rattled("fcc", rng, 0.015, 0.03, 0.14)),
    Kind("random_16", "fcc", 9, lambda i, rng: disordered(rng, rng.uniform(16.0, 23.0))),
]


# ------------------------------------------------------------------ labelling


def label_kind(kind: Kind, run: Runner, work: Path) -> list[Frames]:
    """Single points of one kind; a run that does not converge is left out."""
    frames = []
    for i, atoms in enumerate(kind.structures()):
        text = run(work / kind.name / f"{i:03d}", scf_input(atoms, KPOINTS[kind.cell]))
        if text:
            frames.append(parse(text, atoms))
        print(kind.name, i, "ok" if text else "FAILED", flush=True)
    return frames


def kinetic(velocity: np.ndarray) -> float:
    """Kinetic energy in eV of velocities in Angstrom/fs."""
    return 0.5 * MASS * AMU_A2_FS2 * float((velocity**2).sum())


def temperature(velocity: np.ndarray) -> float:
    """Temperature in K; the centre of mass is at rest, hence 3N - 3 degrees of freedom."""
    return 2 * kinetic(velocity) / ((3 * len(velocity) - 3) * kB)


def thermostat(velocity: np.ndarray, rng: np.random.Generator, time: float) -> np.ndarray:
    """Stochastic velocity rescaling (Bussi, Donadio, Parrinello 2007) over ``time`` fs."""
    dof = velocity.size - 3
    keep = np.exp(-time / MD_TAU)
    ratio = (1 - keep) * 0.5 * kB * MD_TEMPERATURE / kinetic(velocity)
    first, rest = rng.normal(), rng.chisquare(dof - 1)
    return velocity * np.sqrt(keep + ratio * (first**2 + rest) + 2 * first * np.sqrt(keep * ratio))


def start_velocities(rng: np.random.Generator, natoms: int) -> np.ndarray:
    """Maxwell velocities in Angstrom/fs, centre of mass at rest, at MD_START."""
    velocity = rng.normal(size=(natoms, 3))
    velocity -= velocity.mean(axis=0)
    return velocity * np.sqrt(MD_START / temperature(velocity))


def liquid_md(run: Runner, work: Path) -> tuple[Frames, np.ndarray]:
    """Ab-initio MD of the liquid: all steps, and the temperature of each in K.

    Every segment starts on the last step of the one before, which it computes
    again (from scratch, no wave-function history) and which is kept once.
    """
    rng = np.random.default_rng([SEED, 2500])
    atoms = upright(disordered(rng, MD_VOLUME))
    velocity = start_velocities(rng, len(atoms))
    pieces, heat = [], []
    for segment in range(MD_SEGMENTS):
        atoms.arrays["velocity_fs"] = velocity
        text = run(work / "aimd_16" / f"{segment:03d}", md_input(atoms, KPOINTS["fcc"], MD_SEGMENT + 1, MD_DT))
        if not text:
            raise RuntimeError(f"MD segment {segment} failed")
        piece = parse(text, atoms)
        path = np.concatenate([piece.coord, piece.next[None]])
        speeds = np.concatenate([velocity[None], (path[2:] - path[:-2]) / (2 * MD_DT)])
        heat += [temperature(v) for v in speeds[:-1]]
        pieces.append(piece)
        atoms.positions = piece.coord[-1]
        velocity = thermostat(speeds[-1], rng, MD_SEGMENT * MD_DT)
        print("aimd_16 segment", segment, f"{np.mean(heat[-MD_SEGMENT:]):.0f} K", flush=True)
    joined = {
        key: np.concatenate([getattr(p, key)[:-1] for p in pieces]) for key in ("coord", "energy", "force", "virial")
    }
    return Frames(cell=pieces[0].cell, **joined), np.array(heat)


# -------------------------------------------------------------------- results


def radial_distribution(coord: np.ndarray, cell: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """g(r) of frames ``coord`` on bins ``edges`` (Angstrom), over all periodic images."""
    count = np.zeros(len(edges) - 1)
    natoms = coord.shape[1]
    for positions in coord:
        atoms = Atoms(f"Si{natoms}", positions=positions, cell=cell, pbc=True)
        count += np.histogram(neighbor_list("d", atoms, edges[-1]), edges)[0]
    shell = 4 / 3 * np.pi * np.diff(edges**3)
    density = natoms / abs(np.linalg.det(cell))
    return count / (len(coord) * natoms * density * shell)


def rdf_record(md: Frames, heat: np.ndarray) -> dict:
    """g(r) of the equilibrated liquid, with what is needed to repeat it classically."""
    coord, heat = md.coord[MD_EQUILIBRATION:], heat[MD_EQUILIBRATION:]
    edges = np.linspace(0.0, 6.0, 61)
    half = len(coord) // 2
    return {
        "system": "liquid silicon, 16 atoms, fixed cell, periodic images counted",
        "natoms": int(coord.shape[1]),
        "cell_A": md.cell.tolist(),
        "first_frame_A": coord[0].tolist(),
        "target_temperature_K": MD_TEMPERATURE,
        "mean_temperature_K": float(heat.mean()),
        "std_temperature_K": float(heat.std()),
        "timestep_fs": MD_DT,
        "equilibration_steps": MD_EQUILIBRATION,
        "frames": len(coord),
        "thermostat": f"NVE segments of {MD_SEGMENT} steps, stochastic velocity rescaling between them",
        "mean_energy_eV_per_atom": float(md.energy[MD_EQUILIBRATION:].mean() / coord.shape[1]),
        "r_A": ((edges[1:] + edges[:-1]) / 2).tolist(),
        "g": radial_distribution(coord, md.cell, edges).tolist(),
        "g_first_half": radial_distribution(coord[:half], md.cell, edges).tolist(),
        "g_second_half": radial_distribution(coord[half:], md.cell, edges).tolist(),
    }


def crystal_record(scan: list[Frames]) -> dict:
    """Lattice constant and bulk modulus from the scan (Birch-Murnaghan, +-10 % in volume)."""
    natoms = scan[0].coord.shape[1]
    volume = np.array([abs(np.linalg.det(f.cell)) for f in scan]) / natoms
    energy = np.array([f.energy[0] for f in scan]) / natoms
    pressure = np.array([np.trace(f.virial[0]) / 3 for f in scan]) / natoms / volume / GPa
    near = np.abs(volume / volume[energy.argmin()] - 1) < 0.10
    eos = EquationOfState(volume[near], energy[near], eos="birchmurnaghan")
    v0, e0, bulk_modulus = eos.fit()
    return {
        "fit": "Birch-Murnaghan (ase.eos), points within 10 % of the volume of lowest energy",
        "a0_A": float((8 * v0) ** (1 / 3)),
        "B0_GPa": float(bulk_modulus / GPa),
        "B0_prime": float(eos.eos_parameters[2]),
        "V0_A3_per_atom": float(v0),
        "E0_eV_per_atom": float(e0),
        "volume_A3_per_atom": volume.tolist(),
        "energy_eV_per_atom": energy.tolist(),
        "pressure_GPa": pressure.tolist(),
    }


def split(frames: list[Frames]) -> dict[str, list[Frames]]:
    """Every eighth frame is for validation; a lone frame goes to training."""
    return {
        "train": [f for i, f in enumerate(frames) if i % 8 != 3],
        "valid": [f for i, f in enumerate(frames) if i % 8 == 3],
    }


def split_md(md: Frames) -> dict[str, list[Frames]]:
    """All MD steps; the last seventh, after a gap, is for validation.

    Neighbouring steps are nearly the same configuration, so picking every
    eighth would test on what was trained on.
    """
    frames = [
        Frames(md.coord[[i]], md.cell, md.energy[[i]], md.force[[i]], md.virial[[i]]) for i in range(len(md.coord))
    ]
    cut = len(frames) * 6 // 7
    return {"train": frames[: cut - MD_GAP], "valid": frames[cut:]}


def write_system(group: h5py.Group, frames: list[Frames]) -> None:
    """One system in DeePMD-kit's hdf5 layout (float64, eV and Angstrom)."""
    count, natoms = len(frames), frames[0].coord.shape[1]
    group["type.raw"] = np.zeros(natoms, dtype=np.int32)
    group["type_map.raw"] = np.array(["Si"], dtype="S2")
    columns = {
        "coord.npy": [f.coord[0] for f in frames],
        "box.npy": [f.cell for f in frames],
        "energy.npy": [f.energy[0] for f in frames],
        "force.npy": [f.force[0] for f in frames],
        "virial.npy": [f.virial[0] for f in frames],
    }
    for name, column in columns.items():
        shape = (count,) if name == "energy.npy" else (count, -1)
        data = np.array(column, dtype=np.float64).reshape(shape)
        group.create_dataset(f"set.000/{name}", data=data, compression="gzip", compression_opts=9)


def provenance(engine_version: str) -> dict[str, str]:
    """Who computed the data, how, and under which licence."""
    return {
        "material": "silicon",
        "engine": "Quantum ESPRESSO pw.x",
        "version": engine_version,
        "functional": "LDA (Slater, Perdew-Zunger)",
        "pseudopotential": PSEUDO + " (norm-conserving, von Barth-Car)",
        "cutoff": "; ".join(f"{k}={SETTINGS[k]}" for k in ("ecutwfc", "ecutrho", "ecfixed", "qcutz", "q2sigma"))
        + " (Ry)",
        "k_points": "128 points of the fcc zone: 4x4x4 along the cubic axes, indices of odd sum; folded into each cell",
        "smearing": "gaussian, 0.01 Ry; energies are free energies F = E - TS",
        "units": "coord, box: Angstrom; energy, virial: eV; force: eV/Angstrom",
        "virial_sign": "virial = -dE/dstrain = -volume * stress (stress positive in tension)",
        "date": date.today().isoformat(),
        "script": "examples/silicon/make_data.py",
        "licence": "CC0-1.0",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the pw.x runs")
    parser.add_argument("--pw", default="pw.x", help="pw.x command, e.g. 'mpirun -n 4 pw.x'")
    parser.add_argument("--pseudo-dir", type=Path, required=True, help=f"folder that holds {PSEUDO}")
    parser.add_argument("--out", type=Path, default=Path("silicon.hdf5"))
    args = parser.parse_args()

    run = Runner(args.pw, args.pseudo_dir.resolve())
    labelled = {kind.name: label_kind(kind, run, args.work) for kind in KINDS}
    md, heat = liquid_md(run, args.work)

    about = provenance(version((args.work / "crystal_8/000/pw.out").read_text()))
    parts = {name: split(frames) for name, frames in labelled.items()}
    parts["aimd_16"] = split_md(md)
    with h5py.File(args.out, "w") as file:
        file.attrs.update(about)
        for name, part in parts.items():
            for use, frames in part.items():
                if frames:
                    write_system(file.create_group(f"{use}/{name}"), frames)
                print(f"{use}/{name}: {len(frames)} frames")
    record = {
        "provenance": about,
        "crystal": crystal_record(labelled["crystal_8"]),
        "liquid_rdf": rdf_record(md, heat),
    }
    args.out.with_name("dft_reference.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
