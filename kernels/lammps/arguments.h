// The arguments of `pair_style dphpc` and its `pair_coeff`, which docs/lammps.md describes.
#pragma once

#include <string>
#include <vector>

#include "deviation.h"

namespace dphpc {

struct Arguments {
    std::vector<std::string> models;
    bool single = false;         // whether the precision is mixed
    int threads = 0;             // 0: as many as LAMMPS has
    std::vector<double> fparam;  // frame parameters; empty if none are given
    int out_freq = 100;
    std::string out_file = "model_devi.out";
    Measure measure;
};

// Both functions throw std::invalid_argument with a message for the user.
Arguments arguments_of(const std::vector<std::string>& given);

// The model's type of each of LAMMPS' types 1 … n, (n + 1), −1 for NULL; without names the model's types in order.
std::vector<int> types_of(const std::vector<std::string>& names, int n, const std::vector<std::string>& type_map);

}  // namespace dphpc
