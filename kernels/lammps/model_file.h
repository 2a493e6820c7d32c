// The file that `dphpc lammps export` writes: named arrays, as dphpc/interfaces/lammps_model.py describes them.
//
// Nothing is believed before it is checked: lengths against the bytes that are there, the checksum before any array is
// looked at, kinds and shapes when an array is asked for.
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

// Bytes at an address that suits any number.
struct Bytes {
    std::vector<std::uint64_t> words;
    std::size_t size = 0;

    explicit Bytes(std::size_t n = 0) : words((n + 7) / 8), size(n) {}
    char* data() { return reinterpret_cast<char*>(words.data()); }
    const char* data() const { return reinterpret_cast<const char*>(words.data()); }
};

// A whole file.
Bytes bytes_of(const std::string& path);

constexpr std::int64_t any = -1;  // a length that is taken as it is

template <class T>
struct ArrayView {
    const T* data;
    std::vector<std::int64_t> shape;
    std::int64_t size;
};

class ModelFile {
  public:
    // `name` is for messages.
    ModelFile(std::string name, Bytes bytes);

    // An array by its name; its shape must be the one given.
    template <class T>
    ArrayView<T> array(const std::string& name, const std::vector<std::int64_t>& shape) const {
        const Record& record = find(name, kind_of<T>(), shape);
        return {reinterpret_cast<const T*>(record.data), record.shape, record.size};
    }
    double number(const std::string& name) const { return array<double>(name, {1}).data[0]; }
    std::vector<std::string> words(const std::string& name) const;  // of a text
    bool has(const std::string& name) const { return records_.count(name) > 0; }

    [[noreturn]] void fail(const std::string& what) const;

  private:
    enum class Kind : std::uint32_t { text, int32, float32, float64 };
    struct Record {
        Kind kind;
        std::vector<std::int64_t> shape;
        const char* data;
        std::int64_t size;  // numbers or bytes
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
