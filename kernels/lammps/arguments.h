// What `pair_style dphpc` and its `pair_coeff` say, as docs/lammps.md describes it.
#pragma once

#include <string>
#include <vector>

#include "deviation.h"

namespace dphpc {

struct Arguments {
    std::vector<std::string> models;
    bool single = false;         // precision mixed
    int threads = 0;             // 0: LAMMPS' own number
    std::vector<double> fparam;  // empty where none are given
    int out_freq = 100;
    std::string out_file = "model_devi.out";
    Measure measure;
};

// Both throw std::invalid_argument with a sentence for the user.
Arguments arguments_of(const std::vector<std::string>& given);

// (n + 1) of LAMMPS' types 1 … n the model's, −1 for NULL; without names the model's types in their order.
std::vector<int> types_of(const std::vector<std::string>& names, int n, const std::vector<std::string>& type_map);

}  // namespace dphpc
