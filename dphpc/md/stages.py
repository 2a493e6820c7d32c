"""The stages of a run: ensembles, thermostats, barostats, minimizations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from dphpc.core.config import Config
from dphpc.core.errors import did_you_mean
from dphpc.md.strain import Freedom

THERMOSTATS = ("nose-hoover", "langevin", "bussi")
THERMOSTAT_ALIASES = {
    "nose_hoover": "nose-hoover", "nosehoover": "nose-hoover", "nhc": "nose-hoover",
    "csvr": "bussi", "svr": "bussi", "v-rescale": "bussi", "baoab": "langevin",
}  # fmt: skip

_DEFORMATION_KEYS = ("deform_per_ps", "deform_every")
_BATH_KEYS = ("thermostat", "temperature_K", "damping_fs", "chain_length")
_THERMOSTAT_KEYS = (*_BATH_KEYS, *_DEFORMATION_KEYS)
_BAROSTAT_KEYS = (
    "barostat", "pressure_bar", "pressure_damping_fs", "compressibility_per_bar", "barostat_every", "coupling"
)  # fmt: skip
STAGE_KEYS: dict[str, tuple[str, ...]] = {
    "nve": _DEFORMATION_KEYS,
    "nvt": (*_THERMOSTAT_KEYS, "groups"),
    "npt": (*_THERMOSTAT_KEYS, *_BAROSTAT_KEYS),
    "minimize": ("force_tolerance_eV_A", "max_move_A", "stress_tolerance_bar", "pressure_bar", "coupling"),
}
"""Ensembles, and the keys that only their stages have."""

NEVER = 1 << 30
"""Number of steps that stands for an event that never comes in a run."""

FEWEST_MOVES = 5
"""Least number of moves of the box within its time constant: fewer would sample far too wide a range of volumes."""

LARGEST_STRAIN = 0.01
"""Largest strain in one move of a deformation: larger ones would be jumps, not a flow."""

LARGEST_SHRINKAGE = 0.9
"""Fraction of a length by which a deformation may not shorten it."""

BAROSTAT_ALIASES = {"c_rescale": "c-rescale", "crescale": "c-rescale", "scr": "c-rescale"}
COUPLING_ALIASES = {"iso": "isotropic", "aniso": "anisotropic", "tri": "triclinic", "flexible": "triclinic"}

Kelvin = Annotated[float, Field(ge=0)]
Directions = Literal["x", "y", "z", "xy", "xz", "yz"]
Coupling = Literal["isotropic", "anisotropic", "triclinic"]
Bar = float | Annotated[list[float], Field(min_length=2, max_length=2)]
"""A pressure: a number, or [start, end] of a linear ramp."""


def _word(aliases: Mapping[str, str]) -> Callable[[Any], Any]:
    """A validator that reads a word in small letters or capitals, or an alias of one."""
    return lambda value: aliases.get(value.lower(), value.lower()) if isinstance(value, str) else value


def _thermostat(value: Any) -> Any:
    name = _word(THERMOSTAT_ALIASES)(value)
    if isinstance(value, str) and name not in THERMOSTATS:
        raise ValueError(f"unknown thermostat '{value}': {did_you_mean(name, [*THERMOSTATS, *THERMOSTAT_ALIASES])}")
    return name


def _pressure(value: Any) -> Any:
    """Refuse what the types would refuse with a message for each of them."""
    if isinstance(value, list) and len(value) == 3:
        raise ValueError("[start, end] is a ramp; for a pressure of each direction write {x: …, y: …, z: …}")
    if isinstance(value, Mapping):
        axes = "".join(map(str, value))
        if not axes or len(set(axes)) < len(axes) or not set(value) <= set(get_args(Directions)):
            raise ValueError("directions are x, y, z, or two that stretch together, as xy; each at most once")
    return value


def _rates(value: Any) -> Any:
    """Refuse what the types would refuse with a message for each of them."""
    if value is not None and not (isinstance(value, Mapping) and value and set(value) <= set(get_args(Directions))):
        raise ValueError("rates by direction are wanted, as {x: 0.001, yz: 0.002}: x, y, z stretch, xy, xz, yz shear")
    return value


class BathKeys(Config):
    """The settings of a thermostat."""

    thermostat: Annotated[Literal["nose-hoover", "langevin", "bussi"] | None, BeforeValidator(_thermostat)] = None
    temperature_K: Kelvin | Annotated[list[Kelvin], Field(min_length=2, max_length=2)] | None = None
    """Target temperature: a number, or [start, end] of a linear ramp."""
    damping_fs: PositiveFloat = 100.0
    """Time constant: for nose-hoover the period of its oscillation / 2π, for langevin 1/γ, for bussi τ."""
    chain_length: PositiveInt = 3
    """Number of thermostats in a Nosé–Hoover chain."""

    @property
    def temperatures(self) -> tuple[float, float]:
        """Temperature at the stage's beginning and end in K."""
        return _ends(self.temperature_K)

    @property
    def bath(self) -> str:
        """The thermostat in a few words."""
        return f"{self.thermostat}, {_ramp(self.temperatures, 'K')}, damping {self.damping_fs:g} fs"

    def _require_bath(self, owner: str) -> None:
        """Refuse settings that make no thermostat; the owner is "an nvt stage" or "a group"."""
        if self.thermostat is None:
            raise ValueError(f"{owner} needs 'thermostat': one of {', '.join(THERMOSTATS)}")
        if self.temperature_K is None:
            raise ValueError(f"{owner} needs 'temperature_K': a number, or [start, end]")
        if self.thermostat != "nose-hoover" and "chain_length" in self.model_fields_set:
            raise ValueError(f"'chain_length' has no meaning for {self.thermostat}: remove it")
        if self.thermostat != "langevin" and min(self.temperatures) <= 0:
            raise ValueError(f"{self.thermostat} needs a temperature above 0 K")


class GroupBath(BathKeys):
    """The thermostat of a group of atoms."""

    @model_validator(mode="after")
    def _check(self) -> GroupBath:
        self._require_bath("a group")
        return self


class Stage(BathKeys):
    """A number of steps in one ensemble, or an energy minimization."""

    ensemble: Annotated[Literal["nve", "nvt", "npt", "minimize"], BeforeValidator(_word({}))]
    steps: NonNegativeInt
    """Number of steps; for a minimization the largest number."""
    groups: dict[str, GroupBath] | None = None
    """Thermostats by names of the run file's groups, in place of the stage's own; other atoms move as in nve."""
    force_tolerance_eV_A: PositiveFloat = 0.01
    """A minimization has converged when no atom's force exceeds this."""
    max_move_A: PositiveFloat = 0.1
    """Largest displacement of an atom in a step of a minimization."""
    stress_tolerance_bar: PositiveFloat = 10.0
    """A minimization that moves the box has converged when no free component of the stress is off by more."""
    barostat: Annotated[Literal["c-rescale"], BeforeValidator(_word(BAROSTAT_ALIASES))] = "c-rescale"
    pressure_bar: Annotated[Bar | dict[Directions, Bar] | None, BeforeValidator(_pressure)] = None
    """Target pressure, or those of the directions that move; a minimization moves the box only if it is given."""
    pressure_damping_fs: PositiveFloat = 1000.0
    """Time constant of the volume's relaxation."""
    compressibility_per_bar: PositiveFloat = 4.5e-5
    """Estimate of the material's compressibility; the time constant is exact if this is.  The default is water's."""
    barostat_every: PositiveInt = 10
    """Steps between two moves of the box."""
    coupling: Annotated[Coupling, BeforeValidator(_word(COUPLING_ALIASES))] = "isotropic"
    """isotropic: one factor for all directions; anisotropic: independent lengths of box vectors, constant angles;
    triclinic: lengths and angles.  For pressures of directions the default is anisotropic."""
    deform_per_ps: Annotated[dict[Directions, float] | None, BeforeValidator(_rates)] = None
    """Engineering rates at which the box is deformed, by direction as LAMMPS names them."""
    deform_every: PositiveInt = 10
    """Steps between two moves of the box by its deformation."""

    @model_validator(mode="before")
    @classmethod
    def _directions_are_free(cls, data: Any) -> Any:
        apart = isinstance(data, Mapping) and isinstance(data.get("pressure_bar"), Mapping)
        return {"coupling": "anisotropic", **data} if apart else data

    @model_validator(mode="after")
    def _check(self) -> Stage:
        own_keys = STAGE_KEYS[self.ensemble]
        for key in (key for keys in STAGE_KEYS.values() for key in keys if key not in own_keys):
            if key in self.model_fields_set and getattr(self, key) is not None:
                here = f"a{'n' * self.ensemble.startswith('n')} {self.ensemble}"
                others = " or ".join(ensemble for ensemble, keys in STAGE_KEYS.items() if key in keys)
                raise ValueError(f"'{key}' has no meaning in {here} stage: remove it or write ensemble: {others}")
        self._check_pressure()
        self._check_deformation()
        if self.ensemble in ("nve", "minimize"):
            return self
        if self.groups is not None:
            self._check_groups(self.groups)
            return self
        self._require_bath(f"an {self.ensemble} stage")
        if self.ensemble == "npt" and self.pressure_bar is None:
            raise ValueError("an npt stage needs 'pressure_bar': a number, or [start, end]")
        if self.ensemble == "npt" and 0 < self.steps < self.barostat_every:
            raise ValueError(
                f"the box would not move once in {self.steps} steps: 'barostat_every' is {self.barostat_every}"
            )
        return self

    def _check_groups(self, groups: Mapping[str, GroupBath]) -> None:
        if not groups:
            raise ValueError("'groups' names none: write groups: {NAME: {thermostat: …, temperature_K: …}}")
        for key in _BATH_KEYS:
            if key in self.model_fields_set:
                raise ValueError(f"'{key}' is given beside 'groups': give it to the groups; other atoms move as in nve")
        if self.rates:
            raise ValueError(
                "'deform_per_ps' is given beside 'groups': the flow would heat atoms that no thermostat cools; "
                "write thermostat and temperature_K for all atoms, or leave the deformation out"
            )

    def _check_pressure(self) -> None:
        axes = self.pressure_bar if isinstance(self.pressure_bar, dict) else {}
        if axes and self.coupling == "isotropic":
            raise ValueError(
                "'coupling' is isotropic, and 'pressure_bar' names directions: give a number, or no coupling"
            )
        if axes and self.coupling == "triclinic" and (len(axes) < 2 or len("".join(axes)) > len(axes)):
            raise ValueError(
                "'coupling' is triclinic: 'pressure_bar' is a number, or names two or three single directions"
            )
        if self.ensemble != "minimize":
            return
        for key in ("coupling", "stress_tolerance_bar"):
            if self.pressure_bar is None and key in self.model_fields_set:
                raise ValueError(f"'{key}' has no meaning in a constant box: remove it, or add 'pressure_bar'")
        if any(isinstance(pressure, list) for pressure in (self.pressure_bar, *axes.values())):
            raise ValueError("'pressure_bar' is a ramp, which a minimization has not: give one number")

    def _check_deformation(self) -> None:
        if not self.rates:
            if "deform_every" in self.model_fields_set:
                raise ValueError("'deform_every' has no meaning in a box that is not deformed: add 'deform_per_ps'")
            return
        if 0 < self.steps < self.deform_every:
            raise ValueError(
                f"the box would not be deformed once in {self.steps} steps: 'deform_every' is {self.deform_every}"
            )
        moving = {"xyz"[axis] for axis in self.freedom.moving} if self.freedom else set()
        for axes in self.rates:
            if set(axes) <= moving and (len(axes) == 1 or self.coupling == "triclinic"):
                raise ValueError(
                    f"'deform_per_ps' gives {axes} a rate, and 'pressure_bar' lets it move: give pressures to other "
                    "directions only, as pressure_bar: {y: 0, z: 0} for a rate of x"
                )

    @property
    def baths(self) -> list[BathKeys]:
        """The settings of its thermostats: of all atoms, or of groups."""
        if self.ensemble not in ("nvt", "npt"):
            return []
        return [self] if self.groups is None else [*self.groups.values()]

    def temperature(self, step: int) -> float:
        """Temperature in K after `step` steps of the stage; 0 if groups have their own."""
        return self._between(self.temperatures, step)

    def group_temperatures(self, step: int) -> list[float]:
        """Temperatures in K of the groups' thermostats, in turn, after `step` steps of the stage."""
        return [self._between(bath.temperatures, step) for bath in (self.groups or {}).values()]

    def pressure(self, step: int) -> list[float]:
        """Pressures along x, y and z in bar after `step` steps of the stage; 0 for those that do not move."""
        found = [0.0] * 3
        for axes, pressure in self._pressures.items():
            for axis in axes:
                found["xyz".index(axis)] = self._between(_ends(pressure), step)
        return found

    @property
    def freedom(self) -> Freedom | None:
        """How the box may change; None if it is constant."""
        if self.pressure_bar is None:
            return None
        groups = (tuple("xyz".index(axis) for axis in axes) for axes in sorted(self._pressures))
        return Freedom(tuple(groups), self.coupling == "triclinic", cartesian=bool(self.rates))

    @property
    def _pressures(self) -> dict[str, float | list[float]]:
        """Pressures by the directions that stretch together."""
        given = self.pressure_bar
        if given is None or isinstance(given, dict):
            return {str(axes): pressure for axes, pressure in (given or {}).items()}
        return {"xyz": given} if self.coupling == "isotropic" else dict.fromkeys("xyz", given)

    def _between(self, ends: tuple[float, float], step: int) -> float:
        start, end = ends
        return start + (end - start) * (step / self.steps if self.steps else 0.0)

    @property
    def ramps(self) -> bool:
        """Whether temperature or pressure is ramped; then a different number of steps makes it a different stage."""
        values = *(bath.temperature_K for bath in self.baths), *self._pressures.values()
        return any(isinstance(value, list) for value in values)

    @property
    def rates(self) -> dict[str, float]:
        """Rates of the deformation in 1/ps by direction; empty without one."""
        return {str(axes): rate for axes, rate in (self.deform_per_ps or {}).items()}

    @property
    def box_moves(self) -> bool:
        """Whether the box changes."""
        return self.freedom is not None or bool(self.rates)

    def steps_to_box(self, step: int) -> int:
        """Steps until the next move of the box, after `step` steps of the stage; `NEVER` if it does not move.

        It moves between steps only; a minimization moves it in each of its own.
        """
        every = [self.barostat_every] * (self.ensemble == "npt") + [self.deform_every] * bool(self.rates)
        return min((n - step % n for n in every), default=NEVER)

    @property
    def title(self) -> str:
        """The stage in a few words."""
        if self.ensemble == "nve":
            return f"nve{self._deformed}, {self.steps} steps"
        if self.ensemble == "minimize":
            aim = f"forces of {self.force_tolerance_eV_A:g} eV/Å"
            if self.pressure_bar is not None:
                aim += f" and {self._target} within {self.stress_tolerance_bar:g} bar, {self.coupling}"
            return f"minimize (FIRE, to {aim}), at most {self.steps} steps"
        bath = "; ".join(f"{name}: {own.bath}" for name, own in (self.groups or {}).items()) or self.bath
        if self.ensemble == "npt":
            bath += f"; {self.coupling} {self.barostat}, {self._target}"
            bath += f", damping {self.pressure_damping_fs:g} fs"
        return f"{self.ensemble} ({bath}){self._deformed}, {self.steps} steps"

    @property
    def _deformed(self) -> str:
        rates = ", ".join(f"{axes} {rate:g}/ps" for axes, rate in self.rates.items())
        return f", deformed by {rates}" if rates else ""

    @property
    def _target(self) -> str:
        parts = [(axes, _ramp(_ends(pressure), "bar")) for axes, pressure in self._pressures.items()]
        return (
            ", ".join(f"{axes} {ramp}" for axes, ramp in parts) if isinstance(self.pressure_bar, dict) else parts[0][1]
        )


def _ends(value: float | list[float] | None) -> tuple[float, float]:
    start, end = value if isinstance(value, list) else (value or 0.0, value or 0.0)
    return start, end


def _ramp(ends: tuple[float, float], unit: str) -> str:
    return " → ".join(f"{end:g}" for end in dict.fromkeys(ends)) + f" {unit}"
