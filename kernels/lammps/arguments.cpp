#include "arguments.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <stdexcept>

namespace dphpc {
namespace {

const char* const keywords[] = {"precision", "threads",  "fparam",    "out_freq",
                                "out_file",  "relative", "relative_v", "atomic"};

bool is_keyword(const std::string& word) {
    return std::find(std::begin(keywords), std::end(keywords), word) != std::end(keywords);
}

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

// Parses an integer that is at least `least`.
int whole(const std::string& keyword, const std::string& word, long least) {
    char* end = nullptr;
    const long value = std::strtol(word.c_str(), &end, 10);
    if (end == word.c_str() || *end || value < least || value > std::numeric_limits<int>::max())
        refuse(keyword + " " + word + ", expected a whole number from " + std::to_string(least) + " on");
    return static_cast<int>(value);
}

bool to_number(const std::string& word, double& value) {
    char* end = nullptr;
    value = std::strtod(word.c_str(), &end);
    return end != word.c_str() && !*end && std::isfinite(value);
}

}  // namespace

Arguments arguments_of(const std::vector<std::string>& given) {
    Arguments a;
    std::size_t k = 0;
    for (; k < given.size() && !is_keyword(given[k]); ++k) a.models.push_back(given[k]);
    if (a.models.empty()) refuse("it wants a model file: pair_style dphpc MODEL.dphpc");
    while (k < given.size()) {
        const std::string keyword = given[k++];
        if (!is_keyword(keyword))
            refuse("'" + keyword + "' is none of precision, threads, fparam, out_freq, out_file, relative, relative_v and "
                   "atomic");
        if (keyword == "atomic") {
            a.measure.atomic = true;
            continue;
        }
        if (k == given.size()) refuse(keyword + " wants a value");
        if (keyword == "fparam") {
            for (double value; k < given.size() && to_number(given[k], value); ++k) a.fparam.push_back(value);
            if (a.fparam.empty()) refuse("fparam " + given[k] + ", expected numbers");
            continue;
        }
        const std::string value = given[k++];
        if (keyword == "precision") {
            if (value != "float64" && value != "mixed") refuse("precision " + value + ", expected float64 or mixed");
            a.single = value == "mixed";
        } else if (keyword == "threads") {
            a.threads = whole(keyword, value, 1);
        } else if (keyword == "out_freq") {
            a.out_freq = whole(keyword, value, 0);
        } else if (keyword == "relative" || keyword == "relative_v") {
            double& level = keyword == "relative" ? a.measure.relative : a.measure.relative_v;
            if (!to_number(value, level) || level < 0.0) refuse(keyword + " " + value + ", expected a number from 0 on");
        } else {
            a.out_file = value;
        }
    }
    return a;
}

std::vector<int> types_of(const std::vector<std::string>& names, int n, const std::vector<std::string>& type_map) {
    std::string known;
    for (const std::string& name : type_map) known += " " + name;
    std::vector<int> types(n + 1, -1);
    if (names.empty()) {
        if (n > static_cast<int>(type_map.size()))
            refuse("there are " + std::to_string(n) + " atom types, the model knows" + known + ": name the type of each");
        for (int i = 1; i <= n; ++i) types[i] = i - 1;
        return types;
    }
    if (static_cast<int>(names.size()) != n)
        refuse(std::to_string(names.size()) + " names for " + std::to_string(n) + " atom types");
    for (int i = 1; i <= n; ++i) {
        const std::string& name = names[i - 1];
        if (name == "NULL") continue;
        const auto found = std::find(type_map.begin(), type_map.end(), name);
        if (found == type_map.end()) refuse("the model has no type '" + name + "', it knows" + known);
        types[i] = static_cast<int>(found - type_map.begin());
    }
    return types;
}

}  // namespace dphpc
