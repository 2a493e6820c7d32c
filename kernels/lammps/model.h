// Evaluation of a model for the atoms of a rank, as by dphpc/potential/deep.py, with one set of frame parameters.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "energy.h"
#include "model_file.h"

namespace dphpc {

// Settings of a model that do not depend on the precision in which it is evaluated.
struct ModelSettings {
    std::vector<std::string> type_map;
    double rcut = 0.0;                   // Å
    int numb_fparam = 0;
    std::vector<double> default_fparam;  // empty if the model has none

    explicit ModelSettings(const ModelFile& file);
    int n_types() const { return static_cast<int>(type_map.size()); }
};

// Sums to which `evaluate` adds.
struct Results {
    double* forces;         // (n_all, 3) eV/Å, ghosts included
    double* atom_energies;  // (n_local) eV; may be null
    double* atom_virials;   // (n_all, 9) eV, at the neighbor of each pair; may be null
    double energy = 0.0;    // eV
    double virial[9] = {};  // −Σ ∂E/∂r ⊗ r, eV
};

struct Trouble {
    enum Kind { none, too_near, not_finite } kind = none;
    int center = -1;  // the atom whose energy is not finite
};

class Model {
  public:
    virtual ~Model() = default;

    // Sets the frame parameters, not normalized; their number must be numb_fparam.
    virtual void set_fparam(const std::vector<double>& fparam) = 0;

    // Adds to the results for `system`, which is given without centers; `centers` are the local atoms of each type.  If
    // there is trouble, the results are invalid.
    virtual Trouble evaluate(System system, const std::vector<std::vector<std::int32_t>>& centers, int threads,
                             Results& results) = 0;

    // (n_types) number of slots for neighbors of each type.
    virtual const std::int32_t* sel() const = 0;
    virtual bool mixed_sel() const = 0;  // the first number is that of all types together

    // Whether a neighbor of type `other` at distance r (Å) of a center of type `center` is nearer than the table
    // reaches.
    virtual bool is_too_near(int center, int other, double r) const = 0;
};

// Creates a model; with `single` table, moments and fitting net are float32 ("mixed").  Throws FileError if the
// contents of the file are not consistent.
std::unique_ptr<Model> model_of(const ModelFile& file, const ModelSettings& settings, bool single);

}  // namespace dphpc
