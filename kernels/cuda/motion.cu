// The elementary moves of dynamics on the local atoms; arithmetic and bits of dphpc/ops/motion/reference.py.
//
// WARP, BLOCK and FIELDS, the number of an atom's arrays, are defined in front of this text.  Each thread strides over
// the atoms.
#include "exact.h"
#include "sums.h"

namespace dphpc {

// Passed by value; the twin is in dphpc/ops/motion/cuda.py.
struct Atoms {
    double* positions;       // (n_all, 3)
    double* velocities;      // (n, 3)
    double* forces;          // (n, 3)
    const int* types;        // (n_all)
    const long long* ids;    // (n)
    const double* mass;      // (n_types) u
    const double* inverse;   // (n_types) Å/ps² per eV/Å
    const double* built_at;  // (n, 3), positions when the neighbor list was built
    const int* fixed;        // (n) directions, as in dphpc/core/fixing.py; null where no atom is fixed
    const int* group;        // (n) number of its group, as in dphpc/core/state.py
    long long n;
};

// Rows of some fields, in words of four bytes; the other fields have none.
struct Rows {
    const unsigned* from[FIELDS];
    unsigned* to[FIELDS];
    int words[FIELDS];
};

// In the order of the local atoms (n), or without one as they stand.
extern "C" __global__ void __launch_bounds__(BLOCK) copy_rows(const Atoms atoms, const Rows rows, const int* order) {
    for (int f = 0; f < FIELDS; ++f) {
        const long long words = rows.words[f];
        for (long long i = my_place(); i < atoms.n * words; i += n_threads())
            rows.to[f][i] = rows.from[f][order ? order[i / words] * words + i % words : i];
    }
}

// Whether an atom is fixed in the direction of component i of the velocities.
__device__ inline bool is_held(const Atoms& atoms, long long i) {
    return atoms.fixed && (atoms.fixed[i / 3] >> i % 3 & 1);
}

// Component i of the forces; 0 where an atom is fixed.
__device__ inline double pull(const Atoms& atoms, long long i) { return is_held(atoms, i) ? 0.0 : atoms.forces[i]; }

// Whether an atom is in a group; all are in group 0.
__device__ inline bool is_member(const Atoms& atoms, long long atom, int group) {
    return group == 0 || atoms.group[atom] == group;
}

__device__ inline double inverse_mass(const Atoms& atoms, long long atom) { return atoms.inverse[atoms.types[atom]]; }

// Component i of the velocities, kicked.
__device__ inline double kicked(const Atoms& atoms, double dt, long long i) {
    const double per_force = times(dt, inverse_mass(atoms, i / 3));
    return atoms.velocities[i] = plus(atoms.velocities[i], times(pull(atoms, i), per_force));
}

extern "C" __global__ void __launch_bounds__(BLOCK) kick(const Atoms atoms, double dt) {
    for (long long i = my_place(); i < 3 * atoms.n; i += n_threads()) kicked(atoms, dt, i);
}

// After a kick, if any.  Displacements are rounded before they are added; a spacing of 0 leaves them.
extern "C" __global__ void __launch_bounds__(BLOCK) drift(const Atoms atoms, double kick, double dt, double spacing) {
    const RoundTo rounded(spacing);
    for (long long i = my_place(); i < 3 * atoms.n; i += n_threads()) {
        const double v = kick != 0.0 ? kicked(atoms, kick, i) : atoms.velocities[i];
        atoms.positions[i] = plus(atoms.positions[i], rounded(times(v, dt)));
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK) scale(const Atoms atoms, const double* factor, int group) {
    for (long long i = my_place(); i < 3 * atoms.n; i += n_threads())
        if (is_member(atoms, i / 3, group)) atoms.velocities[i] = times(atoms.velocities[i], *factor);
}

constexpr double kinetic_unit = KINETIC;  // u·(Å/ps)² in eV

__device__ inline double kinetic_of(const Atoms& atoms, const double* v, long long i) {
    return times(times(0.5 * kinetic_unit, atoms.mass[atoms.types[i]]), dot(v, v, 1));
}

// sum (3) += ½ m v² of a group, in parts.
extern "C" __global__ void __launch_bounds__(BLOCK) add_kinetic(const Atoms atoms, double* sum, int group) {
    ExactSum own;
    for (long long i = my_place(); i < atoms.n; i += n_threads())
        if (is_member(atoms, i, group)) own.add(kinetic_of(atoms, atoms.velocities + 3 * i, i));
    add_parts(own, sum);
}

// sums (9, 3) += m v ⊗ v in parts, one component for every ninth block.
extern "C" __global__ void __launch_bounds__(BLOCK) add_kinetic_tensor(const Atoms atoms, double* sums) {
    const unsigned component = blockIdx.x % 9, a = component / 3, b = component % 3;
    ExactSum own;
    for (long long i = blockIdx.x / 9 * BLOCK + threadIdx.x; i < atoms.n; i += gridDim.x / 9 * BLOCK) {
        const double* v = atoms.velocities + 3 * i;
        own.add(times(times(v[b], times(kinetic_unit, atoms.mass[atoms.types[i]])), v[a]));
    }
    add_parts(own, sums + 3 * component);
}

// v = keep·v + push·f, where atoms are not fixed.
extern "C" __global__ void __launch_bounds__(BLOCK) steer(const Atoms atoms, double keep, double push) {
    for (long long i = my_place(); i < 3 * atoms.n; i += n_threads())
        atoms.velocities[i] = plus(times(atoms.velocities[i], keep), times(push, pull(atoms, i)));
}

struct Vector {
    double x, y, z;
};

__device__ inline Vector velocity_of(const Atoms& atoms, long long atom) {
    const double* v = atoms.velocities + 3 * atom;
    return {v[0], v[1], v[2]};
}

__device__ inline Vector pull_on(const Atoms& atoms, long long atom) {
    return {pull(atoms, 3 * atom), pull(atoms, 3 * atom + 1), pull(atoms, 3 * atom + 2)};
}

// a·b, in the order of the reference.
__device__ inline double product_of(const Vector& a, const Vector& b) {
    return plus(plus(times(a.x, b.x), times(a.y, b.y)), times(a.z, b.z));
}

// sums (3, 3) += f·v, v² and f² where atoms are not fixed, in parts, one of them for every third block.
extern "C" __global__ void __launch_bounds__(BLOCK) add_descent(const Atoms atoms, double* sums) {
    const unsigned which = blockIdx.x % 3;
    ExactSum own;
    for (long long i = blockIdx.x / 3 * BLOCK + threadIdx.x; i < atoms.n; i += gridDim.x / 3 * BLOCK)
        own.add(product_of(which == 1 ? velocity_of(atoms, i) : pull_on(atoms, i),
                           which == 2 ? pull_on(atoms, i) : velocity_of(atoms, i)));
    add_parts(own, sums + 3 * which);
}

// Random numbers of dphpc/core/random.py.
struct Words {
    unsigned c[4];
};

__device__ inline Words philox(Words w, unsigned k0, unsigned k1) {
    for (int round = 0; round < 10; ++round) {
        const unsigned long long p0 = 0xD2511F53ull * w.c[0], p1 = 0xCD9E8D57ull * w.c[2];
        w = {{static_cast<unsigned>(p1 >> 32) ^ w.c[1] ^ k0, static_cast<unsigned>(p1),
              static_cast<unsigned>(p0 >> 32) ^ w.c[3] ^ k1, static_cast<unsigned>(p0)}};
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return w;
}

__device__ inline double uniform(unsigned a, unsigned b) {
    return static_cast<double>((static_cast<unsigned long long>(a) << 21) ^ (b >> 11)) * 0x1p-53;
}

struct Noise {
    unsigned long long key;   // seed and stream
    unsigned long long step;
    double keep, spread, kT;  // factor of the old velocity, of the new in √(kT/m), eV
};

// Component i of the velocities; nothing stirs a fixed atom.
__device__ inline void stir(const Atoms& atoms, const Noise& noise, long long i, double more) {
    if (!is_held(atoms, i)) atoms.velocities[i] = plus(times(noise.keep, atoms.velocities[i]), more);
}

// v = keep·v + spread·√(kT/m) ξ of a group; taken (3) += the kinetic energy lost, in parts.
extern "C" __global__ void __launch_bounds__(BLOCK)
randomize(const Atoms atoms, const Noise noise, double* taken, int group) {
    ExactSum own;
    const unsigned k0 = static_cast<unsigned>(noise.key), k1 = static_cast<unsigned>(noise.key >> 32);
    const unsigned when = static_cast<unsigned>(noise.step), later = static_cast<unsigned>(noise.step >> 32) << 4;
    for (long long i = my_place(); i < atoms.n; i += n_threads()) {
        if (!is_member(atoms, i, group)) continue;
        const double* v = atoms.velocities + 3 * i;
        own.add(kinetic_of(atoms, v, i));
        const unsigned long long id = static_cast<unsigned long long>(atoms.ids[i]);
        const double speed = times(noise.spread, sqrt(times(noise.kT, inverse_mass(atoms, i))));
        for (unsigned pair = 0; pair < 2; ++pair) {
            const Words counter = {{static_cast<unsigned>(id), static_cast<unsigned>(id >> 32), when, later | pair}};
            const Words w = philox(counter, k0, k1);
            const double radius = sqrt(-2.0 * log(1.0 - uniform(w.c[0], w.c[1])));
            const double angle = 6.283185307179586 * uniform(w.c[2], w.c[3]);
            stir(atoms, noise, 3 * i + 2 * pair, times(radius * cos(angle), speed));
            if (pair == 0) stir(atoms, noise, 3 * i + 1, times(radius * sin(angle), speed));
        }
        own.add(-kinetic_of(atoms, v, i));
    }
    add_parts(own, taken);
}

// largest is raised to a number that is not negative, as the bits of a double, which order as the numbers do; those of
// what is not a number come last.  All threads of a warp take part.
__device__ inline void raise_to(unsigned long long* largest, unsigned long long own) {
    own = warp_max(own);
    if (threadIdx.x % WARP == 0 && own > 0) atomicMax(largest, own);
}

__device__ inline unsigned long long larger(unsigned long long bits, double value) {
    const unsigned long long other = static_cast<unsigned long long>(__double_as_longlong(value));
    return other > bits ? other : bits;
}

// largest (2) is raised to the largest v² and f² of an atom, where it is not fixed.
extern "C" __global__ void __launch_bounds__(BLOCK) note_largest(const Atoms atoms, unsigned long long* largest) {
    unsigned long long speed2 = 0, force2 = 0;
    for (long long i = my_place(); i < atoms.n; i += n_threads()) {
        const Vector v = velocity_of(atoms, i), f = pull_on(atoms, i);
        speed2 = larger(speed2, product_of(v, v));
        force2 = larger(force2, product_of(f, f));
    }
    raise_to(largest, speed2);
    raise_to(largest + 1, force2);
}

// largest is raised to the largest squared displacement since the list was built.  By the way, n words are cleared.
extern "C" __global__ void __launch_bounds__(BLOCK)
note_displacement(const Atoms atoms, unsigned long long* largest, Count* cleared, long long n) {
    for (long long i = my_place(); i < n; i += n_threads()) cleared[i] = 0;
    unsigned long long own = 0;
    for (long long i = my_place(); i < atoms.n; i += n_threads()) {
        double moved2 = 0.0;
        for (int a = 0; a < 3; ++a) {
            const double d = atoms.positions[3 * i + a] - atoms.built_at[3 * i + a];
            moved2 = plus(moved2, times(d, d));
        }
        own = larger(own, moved2);
    }
    raise_to(largest, own);
}

// Forces from whole numbers of a spacing; trouble where one reaches the limit.
extern "C" __global__ void __launch_bounds__(BLOCK)
take_forces(const Atoms atoms, const Count* totals, double spacing, double limit, Count* trouble) {
    for (long long i = my_place(); i < 3 * atoms.n; i += n_threads()) {
        const double force = static_cast<double>(totals[i]) * spacing;
        if (!(fabs(force) < limit)) *trouble = 1;
        atoms.forces[i] = force;
    }
}

}  // namespace dphpc
