// A model on a rank's atoms, as dphpc/potential/deep.py has it for one set of frame parameters.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "energy.h"
#include "model_file.h"

namespace dphpc {

// What of a model does not depend on the precision it is evaluated in.
struct ModelSettings {
    std::vector<std::string> type_map;
    double rcut = 0.0;
    int numb_fparam = 0;
    std::vector<double> default_fparam;  // empty where there is none

    explicit ModelSettings(const ModelFile& file);
    int n_types() const { return static_cast<int>(type_map.size()); }
};

// What `evaluate` adds to.
struct Results {
    double* forces;         // (n_all, 3) eV/Å, ghosts included
    double* atom_energies;  // (n_local) eV; may be null
    double* atom_virials;   // (n_all, 9) eV, at the neighbor of each pair; may be null
    double energy = 0.0;
    double virial[9] = {};  // −Σ ∂E/∂r ⊗ r
};

struct Trouble {
    enum Kind { none, too_near, not_finite } kind = none;
    int center = -1;  // the atom whose energy is not finite
};

class Model {
  public:
    virtual ~Model() = default;

    // Frame parameters in the units of the training; their number is right.
    virtual void set_fparam(const std::vector<double>& fparam) = 0;

    // `system` without centers; `centers` are the local atoms of each type.  With trouble the results are void.
    virtual Trouble evaluate(System system, const std::vector<std::vector<std::int32_t>>& centers, int threads,
                             Results& results) = 0;

    // Slots for neighbors of each type.
    virtual const std::int32_t* sel() const = 0;
    virtual bool mixed_sel() const = 0;  // the first number is that of all types together

    // Whether a neighbor of type `other` at r (Å) is nearer to a center of type `center` than the table reaches.
    virtual bool is_too_near(int center, int other, double r) const = 0;
};

// `single`: float32 table, moments and fitting net ("mixed").  Throws FileError for contents that do not fit together.
std::unique_ptr<Model> model_of(const ModelFile& file, const ModelSettings& settings, bool single);

}  // namespace dphpc
