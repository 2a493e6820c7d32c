#include "model_file.h"

#include <fstream>
#include <iterator>
#include <sstream>
#include <utility>

namespace dphpc {
namespace {

constexpr char magic[8] = {'D', 'P', 'H', 'P', 'C', 'L', 'M', 'P'};
constexpr std::uint32_t version = 1;
constexpr std::uint32_t most_dimensions = 8;
constexpr std::uint32_t longest_name = 256;
constexpr std::size_t bytes_of_kind[] = {1, 4, 4, 8};

struct Head {
    char magic[8];
    std::uint32_t version, checksum;  // the checksum is that of all bytes behind the head
    std::uint64_t size;               // number of bytes behind the head
};
static_assert(sizeof(Head) == 24);

struct RecordHead {
    std::uint32_t name_length, kind, n_dimensions, unused;
};
static_assert(sizeof(RecordHead) == 16);

// CRC-32, the same as zlib's.
std::uint32_t checksum_of(const char* data, std::size_t size) {
    std::uint32_t table[256];
    for (std::uint32_t i = 0; i < 256; ++i) {
        std::uint32_t value = i;
        for (int bit = 0; bit < 8; ++bit) value = value & 1 ? 0xEDB88320u ^ (value >> 1) : value >> 1;
        table[i] = value;
    }
    std::uint32_t crc = 0xFFFFFFFFu;
    for (std::size_t k = 0; k < size; ++k) crc = table[(crc ^ static_cast<unsigned char>(data[k])) & 0xFF] ^ (crc >> 8);
    return crc ^ 0xFFFFFFFFu;
}

std::string text_of(const std::vector<std::int64_t>& shape) {
    std::string text = "(";
    for (const std::int64_t n : shape) text += (text.size() > 1 ? ", " : "") + (n == any ? "any" : std::to_string(n));
    return text + ")";
}

constexpr std::size_t padded(std::size_t n) { return (n + 7) / 8 * 8; }

// The part of the body that is not read yet.
struct Rest {
    const char* at;
    std::size_t size;

    // Takes n bytes and their padding; returns null if fewer are left.
    const char* take(std::size_t n) {
        if (n > size || padded(n) > size) return nullptr;
        const char* piece = at;
        at += padded(n), size -= padded(n);
        return piece;
    }
};

}  // namespace

Bytes bytes_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
    if (size < 0 || size > std::streamoff(1) << 40) throw FileError("cannot open the model file '" + path + "'");
    Bytes bytes(static_cast<std::size_t>(size));
    file.seekg(0);
    if (size > 0 && !file.read(bytes.data(), size)) throw FileError("cannot read the model file '" + path + "'");
    return bytes;
}

void ModelFile::fail(const std::string& what) const {
    throw FileError(name_ + ": " + what + "; write it again with `dphpc lammps export`");
}

ModelFile::ModelFile(std::string name, Bytes bytes) : name_(std::move(name)), bytes_(std::move(bytes)) {
    if (bytes_.size < sizeof(Head) || std::memcmp(bytes_.data(), magic, sizeof magic) != 0)
        throw FileError(name_ + " is not a file for pair_style dphpc; write one with `dphpc lammps export MODEL.dp -o FILE`");
    Head head;
    std::memcpy(&head, bytes_.data(), sizeof head);
    if (head.version != version)
        fail("its format is version " + std::to_string(head.version) + ", the plugin reads version " +
             std::to_string(version) + ": plugin and file are of different releases of dphpc");
    const std::size_t size = bytes_.size - sizeof head;
    if (head.size != size)
        fail("the file is damaged: " + std::to_string(size) + " bytes follow its head, which announces " +
             std::to_string(head.size));
    if (checksum_of(bytes_.data() + sizeof head, size) != head.checksum)
        fail("the file is damaged: its checksum is not that of its content");
    read_records();
}

void ModelFile::read_records() {
    Rest rest{bytes_.data() + sizeof(Head), bytes_.size - sizeof(Head)};
    const auto bad = [&] { fail("the file is damaged: its arrays do not end where it ends"); };
    while (rest.size > 0) {
        RecordHead head;
        const char* piece = rest.take(sizeof head);
        if (!piece) bad();
        std::memcpy(&head, piece, sizeof head);
        if (head.name_length > longest_name || head.n_dimensions > most_dimensions || head.kind >= std::size(bytes_of_kind)) bad();
        const char* name = rest.take(head.name_length);
        const char* dimensions = name ? rest.take(8 * head.n_dimensions) : nullptr;
        if (!dimensions) bad();
        Record record{static_cast<Kind>(head.kind), {}, nullptr, 1};
        const std::size_t width = bytes_of_kind[head.kind];
        for (std::uint32_t k = 0; k < head.n_dimensions; ++k) {
            std::uint64_t n;
            std::memcpy(&n, dimensions + 8 * k, sizeof n);
            // A size beyond the rest of the file is refused before the product can overflow.
            if (n > rest.size || (n > 0 && static_cast<std::uint64_t>(record.size) > rest.size / n)) bad();
            record.shape.push_back(static_cast<std::int64_t>(n));
            record.size *= static_cast<std::int64_t>(n);
        }
        record.data = rest.take(width * static_cast<std::size_t>(record.size));
        if (!record.data) bad();
        if (!records_.emplace(std::string(name, head.name_length), record).second) bad();
    }
}

const ModelFile::Record& ModelFile::find(const std::string& name, Kind kind,
                                         const std::vector<std::int64_t>& shape) const {
    const auto found = records_.find(name);
    if (found == records_.end()) fail("it has no '" + name + "'");
    const Record& record = found->second;
    bool fits = record.kind == kind && record.shape.size() == shape.size();
    for (std::size_t k = 0; fits && k < shape.size(); ++k) fits = shape[k] == any || shape[k] == record.shape[k];
    if (!fits)
        fail("'" + name + "' is of kind " + std::to_string(static_cast<int>(record.kind)) + " and shape " +
             text_of(record.shape) + ", expected kind " + std::to_string(static_cast<int>(kind)) + " and shape " +
             text_of(shape));
    return record;
}

std::vector<std::string> ModelFile::words(const std::string& name) const {
    const ArrayView<char> text = array<char>(name, {any});
    std::istringstream stream(std::string(text.data, static_cast<std::size_t>(text.size)));
    std::vector<std::string> words;
    for (std::string word; stream >> word;) words.push_back(word);
    return words;
}

}  // namespace dphpc
