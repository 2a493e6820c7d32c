// The file that `dphpc lammps export` writes; dphpc/interfaces/lammps_model.py describes its format of named arrays.
//
// Everything is checked before it is used: lengths against the size of the file, the checksum before any array is read,
// kind and shape of an array when it is requested.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace dphpc {

struct FileError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A buffer of bytes, aligned for any type of number.
struct Bytes {
    std::vector<std::uint64_t> words;
    std::size_t size = 0;

    explicit Bytes(std::size_t n = 0) : words((n + 7) / 8), size(n) {}
    char* data() { return reinterpret_cast<char*>(words.data()); }
    const char* data() const { return reinterpret_cast<const char*>(words.data()); }
};

// The content of a file.
Bytes bytes_of(const std::string& path);

constexpr std::int64_t any = -1;  // stands for any length in an expected shape

template <class T>
struct ArrayView {
    const T* data;
    std::vector<std::int64_t> shape;
    std::int64_t size;
};

class ModelFile {
  public:
    // Checks and reads a file's content; `name` is used in error messages.
    ModelFile(std::string name, Bytes bytes);

    // The array of a name, which must have the given shape.
    template <class T>
    ArrayView<T> array(const std::string& name, const std::vector<std::int64_t>& shape) const {
        const Record& record = find(name, kind_of<T>(), shape);
        return {reinterpret_cast<const T*>(record.data), record.shape, record.size};
    }
    double number(const std::string& name) const { return array<double>(name, {1}).data[0]; }
    std::vector<std::string> words(const std::string& name) const;  // words of a text
    bool has(const std::string& name) const { return records_.count(name) > 0; }

    [[noreturn]] void fail(const std::string& what) const;

  private:
    enum class Kind : std::uint32_t { text, int32, float32, float64 };
    struct Record {
        Kind kind;
        std::vector<std::int64_t> shape;
        const char* data;
        std::int64_t size;  // number of elements
    };

    template <class T>
    static Kind kind_of();
    const Record& find(const std::string& name, Kind kind, const std::vector<std::int64_t>& shape) const;
    void read_records();

    std::string name_;
    Bytes bytes_;
    std::map<std::string, Record> records_;
};

template <>
inline ModelFile::Kind ModelFile::kind_of<char>() { return Kind::text; }
template <>
inline ModelFile::Kind ModelFile::kind_of<std::int32_t>() { return Kind::int32; }
template <>
inline ModelFile::Kind ModelFile::kind_of<float>() { return Kind::float32; }
template <>
inline ModelFile::Kind ModelFile::kind_of<double>() { return Kind::float64; }

}  // namespace dphpc
