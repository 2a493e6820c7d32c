"""As `make_golden.py`, which see, for models of DeePMD-kit's kinds `dpa1` (`se_atten`) and `se_atten_v2`.

    python make_golden_dpa1.py

`models/dpa1_NAME.dp` are the models, `golden_dpa1.h5` what DeePMD-kit computes with them.
"""

from __future__ import annotations

from make_golden import Case, Dict, make

ONE: Dict = {"type_one_side": True}
AVG: Dict = {"set_davg_zero": False}
STRIP: Dict = {"tebd_input_mode": "strip"}
SMOOTH: Dict = STRIP | {"smooth_type_embedding": True}
ROUGH: Dict = STRIP | {"smooth_type_embedding": False}
DT: Dict = {"resnet_dt": True}
E_01, E_01_11 = ({"exclude_types": e} for e in ([[0, 1]], [[0, 1], [1, 1]]))
PROTECTED: Dict = {"env_protection": 0.3}
F32: Dict = {"precision": "float32"}
NO_TEBD: Dict = {"concat_output_tebd": False}
WIDE: Dict = {"neuron": [3, 6, 13]}  # no skip connection behind the last layer
BIASED: Dict = {"use_tebd_bias": True}
ELECTRONS: Dict = {"use_econf_tebd": True}
SKIPPING: Dict = {"tebd_dim": 3}  # as many as types: the type embedding's layer has a skip connection
V2: Dict = {"type": "se_atten_v2"}
NARROW: Dict = {"axis_neuron": 2, "neuron": [1, 2, 4]}  # folded first layers must not skip: 1 to 1, 8 to 8
PARAMETERS: Dict = {"numb_fparam": 2, "numb_aparam": 1}
PAIRS: Dict = {"pair_exclude_types": [[0, 1]]}
ATOMS: Dict = {"atom_exclude_types": [1]}


CASES: dict[str, Case] = {
    f"dpa1_{name}": case
    for name, case in {
        "concat": Case("concat, two-sided", min_nbor_dist=0.8),
        "concat_three": Case("concat, two-sided, three types", ntypes=3),
        "concat_one_sided": Case("concat, one-sided, three types", ONE, ntypes=3),
        "concat_one_type": Case("concat, one type, davg not 0", AVG, ntypes=1),
        "concat_resnet_dt": Case("concat, resnet_dt", DT, yaml=True),
        "concat_exclude": Case("concat, exclude_types (0,1), davg 0", E_01),
        "concat_pair_exclude": Case("concat, pair_exclude_types (0,1)", {}, {}, PAIRS),
        "concat_atom_exclude": Case("concat, atom_exclude_types 1", {}, {}, ATOMS),
        "concat_protection": Case("concat, env_protection 0.3", PROTECTED),
        "concat_no_output_tebd": Case("concat, concat_output_tebd false", NO_TEBD),
        "concat_tebd_bias": Case("concat, use_tebd_bias", BIASED),
        "concat_tebd_skip": Case("concat, tebd_dim as many as types", SKIPPING, ntypes=3),
        "concat_electrons": Case("concat, use_econf_tebd", ELECTRONS, ntypes=3),
        "concat_float32": Case("concat, float32 in both", F32, F32),
        "concat_parameters": Case("concat, 2 fparam, 1 aparam", {}, PARAMETERS),
        "concat_narrow": Case("concat, widths as of the folded inputs", NARROW, {"neuron": [8, 8]}),
        "strip_smooth": Case("strip, smooth, two-sided", SMOOTH, min_nbor_dist=0.8),
        "strip_smooth_three": Case("strip, smooth, two-sided, three types", SMOOTH, ntypes=3),
        "strip_smooth_one_sided": Case("strip, smooth, one-sided, three types", SMOOTH | ONE, ntypes=3),
        "strip_smooth_resnet_dt": Case("strip, smooth, resnet_dt", SMOOTH | DT),
        "strip_smooth_davg": Case("strip, smooth, davg not 0", SMOOTH | AVG),
        "strip_smooth_exclude_davg": Case("strip, smooth, exclude_types, davg not 0", SMOOTH | AVG | E_01_11),
        "strip_smooth_exclude": Case("strip, smooth, exclude_types (0,1)", SMOOTH | E_01),
        "strip_smooth_protection": Case("strip, smooth, env_protection 0.3", SMOOTH | PROTECTED),
        "strip": Case("strip, not smooth, two-sided", ROUGH, min_nbor_dist=0.8),
        "strip_wide": Case("strip, not smooth, no skip in the last layer", ROUGH | WIDE),
        "strip_one_sided": Case("strip, not smooth, one-sided, three types", ROUGH | ONE, ntypes=3),
        "strip_resnet_dt": Case("strip, not smooth, resnet_dt", ROUGH | DT),
        "v2": Case("se_atten_v2, three types", V2, ntypes=3),
    }.items()
}


def model_params(case: Case) -> Dict:
    """Return the ``model`` section of the input script of a case."""
    descriptor = {
        "type": "se_atten",
        **{"rcut": 4.0, "rcut_smth": 1.6, "sel": 60 if case.ntypes < 3 else 90},
        **{"neuron": [3, 6, 12], "axis_neuron": 4, "tebd_dim": 4, "attn_layer": 0, "seed": 1},
        **case.descriptor,
    }
    fitting = {"neuron": [10, 10, 10], "resnet_dt": True, "seed": 2, **case.fitting}
    types = ["H", "O", "C"][: case.ntypes]
    return {"type_map": types, "descriptor": descriptor, "fitting_net": fitting, **case.model}


if __name__ == "__main__":
    make(CASES, model_params, "golden_dpa1.h5")
