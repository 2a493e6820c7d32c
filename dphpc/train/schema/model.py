"""The `model` section of a training input, in DeePMD-kit's keys and defaults (3.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from dphpc.core.config import Config, Seed
from dphpc.core.errors import InputError
from dphpc.model.activations import activation, has_kinks

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
TypePairs = list[tuple[NonNegativeInt, NonNegativeInt]]

_PRECISIONS = {
    "default": "float64",
    "float64": "float64",
    "double": "float64",
    "float32": "float32",
    "single": "float32",
}
_OTHER_DESCRIPTORS = (
    *("loc_frame", "dpa4c", "DPA4C", "dpa4", "DPA4", "SeZM", "sezm", "se_e3", "se_at", "se_a_3be", "se_t", "se_a_tpe"),
    *("se_a_ebd", "se_e2_r", "se_r", "hybrid", "se_e3_tebd", "dpa2", "dpa3"),
    *("se_a_ebd_v2", "se_a_tpe_v2", "se_a_mask"),
)
SE_ATTEN, SE_ATTEN_V2 = ("dpa1", "se_atten"), "se_atten_v2"
_OTHER_FITTINGS = ("dpa4_ener", "sezm_ener", "dos", "population", "property", "polar", "dipole")
_OTHER_MODELS = ("dpa4", "DPA4", "SeZM", "sezm", "frozen", "pairtab", "pairwise_dprc", "linear_ener")


_FORMS_OF_SEL = 'a list of integers, one for each type, "auto" or "auto:factor" (factor at least 1)'

_SMOOTH = "smooth_type_embedding"

MAX_RCUT = 100.0
"""Å; more is taken for another unit, as the neighbors would fill the memory."""


def _known_activation(name: str) -> str:
    try:
        activation(name)
    except InputError as error:
        raise ValueError(f"{error.what}; {error.remedy or error.expected}") from None
    return name


def _known_precision(name: str) -> str:
    if name in ("float16", "half", "bfloat16"):
        raise ValueError(f"precision '{name}' of DeePMD-kit is not supported by dphpc yet; use float64 or float32")
    if name not in _PRECISIONS:
        raise ValueError(f"'{name}' is not a precision; known are {', '.join(_PRECISIONS)}")
    return name


Activation = Annotated[str, AfterValidator(_known_activation)]
Precision = Annotated[str, AfterValidator(_known_precision)]


def one_type(what: str, *ours: str, others: Sequence[str] = (), beside: str = "") -> BeforeValidator:
    """A section's `type`: one of ours, of which the first is canonical.

    Parameters
    ----------
    others
        Types that DeePMD-kit knows and we do not.
    beside
        What else is supported, for the message.
    """

    def check(value: Any) -> str:
        if value in ours:
            return ours[0]
        supported = f"supported: '{ours[0]}'{beside}"
        if value in others:
            raise ValueError(f"{what} '{value}' of DeePMD-kit is not supported by dphpc yet; {supported}")
        raise ValueError(f"'{value}' is not a {what}; {supported}")

    return BeforeValidator(check)


class DescriptorConfig(Config):
    """`model/descriptor` of type `se_e2_a`.  Lengths in Å."""

    key_aliases: ClassVar = {"n_axis_neuron": "axis_neuron"}

    type: Annotated[
        str,
        one_type("descriptor", "se_e2_a", "se_a", others=_OTHER_DESCRIPTORS, beside=", and 'dpa1' with attn_layer 0"),
    ]
    sel: list[NonNegativeInt] | str = "auto"
    rcut: Positive = 6.0
    rcut_smth: NonNegative = 0.5
    neuron: list[PositiveInt] = Field(default=[10, 20, 40], min_length=1)
    axis_neuron: PositiveInt = 4
    activation_function: Activation = "tanh"
    resnet_dt: bool = False
    type_one_side: bool = False
    precision: Precision = "default"
    trainable: bool = True
    seed: Seed | None = None
    exclude_types: TypePairs = Field(default=[])
    env_protection: NonNegative = 0.0
    set_davg_zero: bool = False

    mixed: ClassVar[bool] = False
    """Whether `sel` is one number, of neighbors of all types together."""

    @field_validator("rcut")
    @classmethod
    def _check_rcut(cls, value: float) -> float:
        if value > MAX_RCUT:
            raise ValueError(f"rcut is in Å: {value:g} is no cutoff, at most {MAX_RCUT:g}")
        return value

    @field_validator("sel", mode="before")
    @classmethod
    def _check_form_of_sel(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple | str):
            raise ValueError(f"sel {value!r} should be {_FORMS_OF_SEL}")
        return value

    @field_validator("sel")
    @classmethod
    def _check_sel(cls, value: list[int] | str) -> list[int] | str:
        if isinstance(value, str):
            auto_sel_factor(value)
        elif sum(value) == 0:
            raise ValueError("sel leaves no neighbors: at least one type needs a positive number")
        return value

    @model_validator(mode="after")
    def _check_consistency(self) -> DescriptorConfig:
        if self.rcut_smth >= self.rcut:
            raise ValueError(f"rcut_smth ({self.rcut_smth:g} Å) must be smaller than rcut ({self.rcut:g} Å)")
        if self.axis_neuron > self.neuron[-1]:
            raise ValueError(
                f"axis_neuron ({self.axis_neuron}) must not exceed the last width of neuron ({self.neuron[-1]})"
            )
        if self.exclude_types and not self.set_davg_zero:
            raise ValueError(
                "exclude_types needs set_davg_zero: true; without it the energy jumps where an excluded neighbor "
                "crosses rcut"
            )
        return self

    @property
    def numpy_precision(self) -> str:
        """The name of NumPy's type: float64 or float32."""
        return _PRECISIONS[self.precision]


def auto_sel_factor(sel: str) -> float:
    """The factor of `sel: "auto"` (1.1) or `"auto:factor"`.

    Raises
    ------
    ValueError
        Anything else.
    """
    if sel == "auto":
        return 1.1
    match = re.fullmatch(r"auto:(\d+(?:\.\d*)?)", sel)
    if not match or float(match[1]) < 1.0:
        raise ValueError(f"sel '{sel}' should be {_FORMS_OF_SEL}")
    return float(match[1])


class SeAttenConfig(DescriptorConfig):
    """`model/descriptor` of type `dpa1`, also `se_atten`, without attention layers: those keys have no effect.

    `se_atten_v2` is `dpa1` with other defaults, and becomes that.
    """

    key_aliases: ClassVar = {**DescriptorConfig.key_aliases, "smooth_type_embdding": "smooth_type_embedding"}
    ignored_keys: ClassVar = frozenset({
        "attn", "attn_dotr", "attn_mask", "trainable_ln", "ln_eps", "normalize", "temperature", "scaling_factor",
    })  # fmt: skip
    unsupported_keys: ClassVar = {"stripped_type_embedding": (None, False)}
    mixed: ClassVar[bool] = True

    type: Annotated[str, one_type("descriptor", *SE_ATTEN)]
    set_davg_zero: bool = True
    attn_layer: NonNegativeInt = 2
    tebd_dim: PositiveInt = 8
    tebd_input_mode: Literal["concat", "strip"] = "concat"
    smooth_type_embedding: bool = False
    concat_output_tebd: bool = True
    use_econf_tebd: bool = False
    use_tebd_bias: bool = False

    @model_validator(mode="before")
    @classmethod
    def _check_mode(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if data.get("type") == SE_ATTEN_V2:
            fixed = {"tebd_input_mode": "strip", "smooth_type_embedding": True}
            for key, value in fixed.items():
                if data.get(key, value) != value:
                    raise ValueError(f'{key} of {SE_ATTEN_V2} is {data[key]!r}; leave it out, or write "type": "dpa1"')
            return {"set_davg_zero": False, **data, **fixed, "type": SE_ATTEN[0]}
        if data.get("tebd_input_mode", "concat") == "concat":  # where smoothness has to do with attention only
            return {key: value for key, value in data.items() if cls.key_aliases.get(key, key) != _SMOOTH}
        return data

    @field_validator("sel", mode="before")
    @classmethod
    def _check_form_of_sel(cls, value: Any) -> Any:
        numbers = [value] if isinstance(value, int) else value
        if not isinstance(numbers, list | tuple | str):
            raise ValueError(f"sel {value!r} should be an integer, {_FORMS_OF_SEL}")
        return [sum(numbers)] if all(type(n) is int and n >= 0 for n in numbers) else numbers

    @model_validator(mode="after")
    def _check_form(self) -> SeAttenConfig:
        if self.attn_layer:
            raise ValueError(
                f"attn_layer is {self.attn_layer} (DeePMD-kit's default is 2): models with attention are not "
                'supported; write "attn_layer": 0'
            )
        if self.smooth_type_embedding and not self.set_davg_zero:
            raise ValueError(
                "set_davg_zero is false: a smooth type embedding then has no table, through which models are trained "
                f"(it is the default of {SE_ATTEN_V2}); write true"
            )
        if has_kinks(self.activation_function):
            raise ValueError(
                f"a {self.type} model is trained through a table, which needs a smooth activation_function, not "
                f"'{self.activation_function}'; write tanh, gelu or silu"
            )
        if self.tebd_input_mode == "concat":
            _require_no_skip(self.neuron[0], 1 + self.tebd_dim * (1 if self.type_one_side else 2), "descriptor/neuron")
        return self


def _require_no_skip(width: int, n_in: int, where: str) -> None:
    """The first layer must not add its input, type embedding included, to its output."""
    if width in (n_in, 2 * n_in):
        raise ValueError(
            f"{where} begins with {width}: such a layer adds its {n_in} inputs, type embedding included, to its output "
            "(DeePMD-kit's residual), which is not supported; write another number"
        )


class FittingConfig(Config):
    """`model/fitting_net` of type `ener`."""

    key_aliases: ClassVar = {"n_neuron": "neuron"}
    unsupported_keys: ClassVar = {
        "dim_case_embd": (0,),
        "layer_name": (None,),
        "use_aparam_as_mask": (False,),
        "tot_ener_zero": (False,),
    }

    type: Annotated[str, one_type("fitting net", "ener", others=_OTHER_FITTINGS)] = "ener"
    numb_fparam: NonNegativeInt = 0
    numb_aparam: NonNegativeInt = 0
    default_fparam: list[float] | None = None
    neuron: list[PositiveInt] = Field(default=[120, 120, 120], min_length=1)
    activation_function: Activation = "tanh"
    precision: Precision = "default"
    resnet_dt: bool = True
    trainable: bool | list[bool] = True
    rcond: Annotated[float, Field(ge=0)] | None = None
    seed: Seed | None = None
    atom_ener: list[float | None] = Field(default=[])

    @model_validator(mode="after")
    def _check_consistency(self) -> FittingConfig:
        if isinstance(self.trainable, list) and len(self.trainable) != len(self.neuron) + 1:
            raise ValueError(f"trainable has {len(self.trainable)} entries; one per layer is {len(self.neuron) + 1}")
        if self.default_fparam is not None and len(self.default_fparam) != self.numb_fparam:
            raise ValueError(
                f"default_fparam has {len(self.default_fparam)} values, but numb_fparam is {self.numb_fparam}"
            )
        return self

    @property
    def numpy_precision(self) -> str:
        """The name of NumPy's type: float64 or float32."""
        return _PRECISIONS[self.precision]


def _form(descriptor: Any) -> str:
    """Which of the descriptor's sections it is."""
    kind = descriptor.get("type") if isinstance(descriptor, Mapping) else getattr(descriptor, "type", None)
    return "dpa1" if kind in (*SE_ATTEN, SE_ATTEN_V2) else "se_e2_a"


class ModelConfig(Config):
    """The `model` section: one standard energy model."""

    unsupported_keys: ClassVar = {
        "use_srtab": (None,),
        "smin_alpha": (None,),
        "sw_rmin": (None,),
        "sw_rmax": (None,),
        "srtab_add_bias": (True, False),
        "preset_out_bias": (None,),
        "type_embedding": (None,),
        "modifier": (None,),
        "compress": (None,),
        "spin": (None,),
        "finetune_head": (None,),
        "model_branch_alias": ([],),
        "bridging_method": ("None", "none", None),
        "bridging_r_inner": (0.5,),
        "bridging_r_outer": (0.8,),
        "shared_dict": (None, {}),
        "model_dict": (),
    }

    type: Annotated[str, one_type("model type", "standard", others=_OTHER_MODELS)] = "standard"
    type_map: list[str] = Field(min_length=1)
    data_stat_nbatch: PositiveInt = 10
    data_stat_protect: NonNegative = 1e-2
    data_bias_nsample: PositiveInt = 10
    pair_exclude_types: TypePairs = Field(default=[])
    atom_exclude_types: list[NonNegativeInt] = Field(default=[])
    info: dict[str, Any] = Field(default={})
    descriptor: Annotated[
        Annotated[DescriptorConfig, Tag("se_e2_a")] | Annotated[SeAttenConfig, Tag("dpa1")], Discriminator(_form)
    ]
    fitting_net: FittingConfig

    @field_validator("type_map")
    @classmethod
    def _check_type_map(cls, value: list[str]) -> list[str]:
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise ValueError(f"type_map names {', '.join(twice)} more than once")
        return value

    @model_validator(mode="after")
    def _check_types(self) -> ModelConfig:
        n = len(self.type_map)
        sel = self.descriptor.sel
        if isinstance(sel, list) and len(sel) != n and not self.descriptor.mixed:
            raise ValueError(f"descriptor/sel has {len(sel)} entries, but type_map names {n} types")
        if len(self.fitting_net.atom_ener) not in (0, n):
            raise ValueError(
                f"fitting_net/atom_ener has {len(self.fitting_net.atom_ener)} entries, but type_map names {n} types"
            )
        used = {
            "descriptor/exclude_types": [t for pair in self.descriptor.exclude_types for t in pair],
            "pair_exclude_types": [t for pair in self.pair_exclude_types for t in pair],
            "atom_exclude_types": self.atom_exclude_types,
        }
        for key, types in used.items():
            if types and max(types) >= n:
                raise ValueError(f"{key} names type {max(types)}, but type_map has types 0 to {n - 1}")
        return self

    @model_validator(mode="after")
    def _check_shared(self) -> ModelConfig:
        d, f = self.descriptor, self.fitting_net
        if not isinstance(d, SeAttenConfig):
            return self
        if not d.set_davg_zero and self.n_types > 1:
            raise ValueError(
                "descriptor/set_davg_zero is false: DeePMD-kit then gives missing neighbors the type of a structure's "
                "first atom, and energies depend on the order of atoms; write true"
            )
        if any(e is not None for e in f.atom_ener):
            raise ValueError(f"fitting_net/atom_ener does not go with descriptor {d.type}; leave it out")
        if d.concat_output_tebd:
            width = d.neuron[-1] * d.axis_neuron + d.tebd_dim + f.numb_fparam + f.numb_aparam
            _require_no_skip(f.neuron[0], width, "fitting_net/neuron")
        return self

    @property
    def n_types(self) -> int:
        """Number of atom types."""
        return len(self.type_map)
