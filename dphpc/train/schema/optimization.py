"""The sections `learning_rate`, `optimizer` and `loss` of a training input (DeePMD-kit 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from dphpc.core.config import Config
from dphpc.train.schema.model import NonNegative, NonNegativeInt, Positive, PositiveInt, one_type

DEFAULT_STOP_LR = 5e-8
_OTHER_LOSSES = ("ener_hess", "dens", "ener_spin", "dos", "population", "property", "tensor")
Fraction = Annotated[float, Field(ge=0, lt=1)]
PartOfOne = Annotated[float, Field(gt=0, le=1)]


class _LearningRate(Config):
    """Keys that all schedules share.  After parsing exactly one of `stop_lr` and `stop_lr_ratio` is set."""

    start_lr: Positive
    stop_lr: NonNegative | None = None
    stop_lr_ratio: NonNegative | None = None
    warmup_steps: NonNegativeInt = 0
    warmup_ratio: Fraction | None = None
    warmup_start_factor: NonNegative = 0.0
    scale_by_worker: Literal["linear", "sqrt", "none"] = "linear"

    @model_validator(mode="before")
    @classmethod
    def _fill_stop(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("stop_lr") is None and data.get("stop_lr_ratio") is None:
            return {**data, "stop_lr": DEFAULT_STOP_LR}
        return data

    @model_validator(mode="after")
    def _check_alternatives(self) -> _LearningRate:
        if self.stop_lr is not None and self.stop_lr_ratio is not None:
            raise ValueError("stop_lr and stop_lr_ratio exclude each other: keep one")
        if self.warmup_steps and self.warmup_ratio is not None:
            raise ValueError("warmup_steps and warmup_ratio exclude each other: keep one")
        if (self.stop_lr or 0.0) > self.start_lr:
            raise ValueError(f"stop_lr ({self.stop_lr:g}) is above start_lr ({self.start_lr:g})")
        if (self.stop_lr_ratio or 0.0) > 1.0:
            raise ValueError(f"stop_lr_ratio ({self.stop_lr_ratio:g}) is above 1")
        return self


class ExpConfig(_LearningRate):
    """Exponential decay, in steps of `decay_steps` or smooth."""

    type: Literal["exp"] = "exp"
    decay_steps: PositiveInt = 5000
    decay_rate: PartOfOne | None = None
    smooth: bool = False


class CosineConfig(_LearningRate):
    """Cosine annealing."""

    type: Literal["cosine"] = "cosine"


class WsdConfig(_LearningRate):
    """Warm-up, stable, decay."""

    type: Literal["wsd"] = "wsd"
    decay_phase_ratio: PartOfOne = 0.1
    decay_type: Literal["inverse_linear", "cosine", "linear"] = "inverse_linear"

    @model_validator(mode="after")
    def _check_positive(self) -> WsdConfig:
        if not (self.stop_lr or self.stop_lr_ratio):
            raise ValueError("the wsd schedule needs a positive stop_lr or stop_lr_ratio")
        return self


def _type_or(default: str) -> Discriminator:
    """Choose a section's kind by its `type`, which may be missing."""

    def kind(data: Any) -> Any:
        return data.get("type", default) if isinstance(data, Mapping) else getattr(data, "type", default)

    return Discriminator(kind)


LearningRateConfig = Annotated[
    Annotated[ExpConfig, Tag("exp")] | Annotated[CosineConfig, Tag("cosine")] | Annotated[WsdConfig, Tag("wsd")],
    _type_or("exp"),
]


class _Optimizer(Config):
    """What all optimizers share.

    Class attributes
    ----------------
    own_keys
        Keys that DeePMD-kit's optimizer of this name lacks.
    off_keys
        Keys that its default turns on and that are off here, with the values that turn them off.
    """

    own_keys: ClassVar[frozenset[str]] = frozenset()
    off_keys: ClassVar[Mapping[str, Any]] = {}


class AdamConfig(_Optimizer):
    """Adam; `weight_decay` is added to the gradient."""

    type: Literal["Adam"] = "Adam"
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.999
    weight_decay: NonNegative = 0.0


class AdamWConfig(_Optimizer):
    """AdamW; weight decay acts apart from the gradient."""

    type: Literal["AdamW"] = "AdamW"
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.999
    weight_decay: NonNegative = 0.001


class HybridMuonConfig(_Optimizer):
    """Muon for weight matrices, Adam for the rest.

    `lr_adjust` ≤ 0: an (m, n) step is scaled by lr_adjust_coeff·√max(m, n) and Adam has the learning rate; > 0: by
    √max(1, m/n), and Adam has the learning rate divided by it.  `muon_mode` treats arrays of more than two
    dimensions, which we have none of; `flash_muon` is for other devices.  Unlike DeePMD-kit's, `magma_muon` is off.
    """

    key_aliases: ClassVar = {"muon_momentum": "momentum"}
    unsupported_keys: ClassVar = {"magma_muon": (False,)}
    off_keys: ClassVar = {"magma_muon": False}

    type: Literal["HybridMuon"] = "HybridMuon"
    momentum: Fraction = 0.95
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.95
    weight_decay: NonNegative = 0.001
    lr_adjust: float = 0.0
    lr_adjust_coeff: Positive = 0.18
    muon_mode: Literal["2d", "flat", "slice"] = "slice"
    enable_gram: bool = True
    flash_muon: bool = True


class SoapConfig(_Optimizer):
    """SOAP for weight matrices, Adam with the same betas for the rest (not in DeePMD-kit).

    A side longer than `max_precond_dim` is not preconditioned; `shampoo_beta` is the decay of the products' means,
    `adam_beta2` if not given; bases follow every `precondition_frequency` steps.
    """

    type: Literal["SOAP"] = "SOAP"
    adam_beta1: Fraction = 0.95
    adam_beta2: Fraction = 0.95
    shampoo_beta: Fraction | None = None
    precondition_frequency: PositiveInt = 10
    max_precond_dim: PositiveInt = 512
    weight_decay: NonNegative = 0.0


class LkfConfig(_Optimizer):
    """Layer-wise extended Kalman filter.

    `kf_blocksize`: largest block of the covariance; not given: the largest that fits into the memory, at most
    DeePMD-kit's 5120.  Prefactors multiply errors and their gradients, geometrically from start to limit.  Not in
    DeePMD-kit: `kf_memory_gb` (half of the available memory), `kf_precision` of the covariance, `kf_force_groups`
    updates by the forces of `kf_force_atoms` atoms of each frame a step, `kf_noise` (factor of the variances of
    measurements) and `kf_forgetting` (forgetting factor at the start, which approaches 1).
    """

    own_keys: ClassVar = frozenset(
        {"kf_memory_gb", "kf_precision", "kf_force_groups", "kf_force_atoms", "kf_noise", "kf_forgetting"}
    )

    type: Literal["LKF"] = "LKF"
    kf_blocksize: PositiveInt | None = None
    kf_start_pref_e: Positive = 1.0
    kf_limit_pref_e: Positive = 1.0
    kf_start_pref_f: Positive = 1.0
    kf_limit_pref_f: Positive = 1.0
    kf_memory_gb: Positive | None = None
    kf_precision: Literal["float64", "float32"] = "float64"
    kf_force_groups: PositiveInt = 4
    kf_force_atoms: PositiveInt = 6
    kf_noise: Positive = 1.0
    kf_forgetting: PartOfOne = 0.98


OptimizerConfig = Annotated[
    Annotated[AdamConfig, Tag("Adam")]
    | Annotated[AdamWConfig, Tag("AdamW")]
    | Annotated[HybridMuonConfig, Tag("HybridMuon")]
    | Annotated[SoapConfig, Tag("SOAP")]
    | Annotated[LkfConfig, Tag("LKF")],
    _type_or("Adam"),
]


class LossConfig(Config):
    """`loss` of type `ener`: prefactors at the start and at the end of training.

    Terms: e energy, f force, v virial, ae atomic energy, pf force weighted per atom (`atom_pref.npy`).
    """

    unsupported_keys: ClassVar = {
        "start_pref_h": (0,),
        "limit_pref_h": (0,),
        "start_pref_gf": (0,),
        "limit_pref_gf": (0,),
        "numb_generalized_coord": (0,),
        "enable_atom_ener_coeff": (False,),
    }

    type: Annotated[str, one_type("loss", "ener", others=_OTHER_LOSSES)] = "ener"
    start_pref_e: NonNegative = 0.02
    limit_pref_e: NonNegative = 1.0
    start_pref_f: NonNegative = 1000.0
    limit_pref_f: NonNegative = 1.0
    start_pref_v: NonNegative = 0.0
    limit_pref_v: NonNegative = 0.0
    start_pref_ae: NonNegative = 0.0
    limit_pref_ae: NonNegative = 0.0
    start_pref_pf: NonNegative = 0.0
    limit_pref_pf: NonNegative = 0.0
    use_default_pf: bool = False
    relative_f: NonNegative | None = None
    use_huber: bool = False
    huber_delta: Positive | Annotated[list[Positive], Field(min_length=3, max_length=3)] = 0.01
    loss_func: Literal["mse", "mae"] = "mse"
    f_use_norm: bool = False
    intensive_ener_virial: bool = False

    @model_validator(mode="after")
    def _check_norm(self) -> LossConfig:
        if self.f_use_norm and not (self.use_huber or self.loss_func == "mae"):
            raise ValueError('f_use_norm acts only with use_huber: true or loss_func: "mae"')
        return self
