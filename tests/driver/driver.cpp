// CUDA's driver and cuBLASLt as far as this project calls them, whose device is the host: kernels are the emulated ones.
// It checks what a GPU forgives, or punishes by chance: copies and products of memory that is not there, any use of what was
// freed, copies through host memory that is not pinned, calls outside of a context, grids and matrices that do not fit. What
// is asked of a stream is done as late as CUDA allows it, when somebody waits; see ../with-driver for what can be chosen.
#include "../../src/kernels/cuda/emulated.hpp"

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sys/mman.h>
#include <vector>

extern "C" int emulated_has(const char *name);
extern "C" const std::size_t *emulated_arguments(const char *name, std::size_t *count);
extern "C" int emulated_launch(const char *name, const unsigned *grid, const unsigned *size, unsigned shared_bytes,
                               void **arguments);

#define CALL(name, ...) extern "C" int name(__VA_ARGS__)

namespace {

/// CUDA's codes.
enum Code {
    OK = 0,
    INVALID = 1,
    OUT_OF_MEMORY = 2,
    NO_CONTEXT = 201,
    NOT_FOUND = 500,
    NOT_READY = 600,
    FAILED = 719,
    CAPTURED = 900,
};
/// cuBLASLt's.
enum Status { BAD_VALUE = 7, NOT_SUPPORTED = 15 };
/// Types of numbers.
enum Type { F32 = 0, F16 = 2, BF16 = 14 };

typedef std::uint64_t Address;
typedef std::function<void()> Work;

[[noreturn]] void refuse(const char *what) {
    std::fprintf(stderr, "driver: %s\n", what);
    std::abort();
}

long chosen(const char *name, long otherwise) {
    const char *value = std::getenv(name);
    return value ? std::atol(value) : otherwise;
}

const std::size_t TOTAL_BYTES = static_cast<std::size_t>(chosen("DRIVER_MIB", 2048)) << 20;
const long SEED = chosen("DRIVER_SEED", 0);

std::recursive_mutex lock;
thread_local void *context = nullptr;
/// Of a kernel; every later call gives it.
int lost = OK;

/// A number below another; always 0 without a seed.
std::uint64_t below(std::uint64_t end) {
    static std::uint64_t state = static_cast<std::uint64_t>(SEED);
    if (SEED == 0) return 0;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % end;
}

/// A device's memory, or pinned memory of the host: pieces by where they begin.
struct Pieces {
    std::map<Address, std::size_t> sizes;

    void require(Address address, std::size_t bytes, const char *what) const {
        if (bytes == 0) return;
        auto after = sizes.upper_bound(address);
        if (after == sizes.begin()) refuse(what);
        auto piece = std::prev(after);
        if (address + bytes > piece->first + piece->second) refuse(what);
    }

    Address add(std::size_t bytes) {
        void *piece = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (piece == MAP_FAILED) refuse("the host has no memory left");
        // NaN in every type, until it is written.
        std::memset(piece, 0xff, bytes);
        Address address = reinterpret_cast<Address>(piece);
        sizes[address] = bytes;
        return address;
    }

    std::size_t remove(Address address) {
        auto piece = sizes.find(address);
        if (piece == sizes.end()) refuse("memory is freed that is not there");
        std::size_t bytes = piece->second;
        // Whoever uses it from now on faults, until many others were freed and the addresses are somebody else's.
        void *start = reinterpret_cast<void *>(address);
        madvise(start, bytes, MADV_DONTNEED);
        mprotect(start, bytes, PROT_NONE);
        freed.push_back(*piece);
        if (freed.size() > FREED_MAX) {
            munmap(reinterpret_cast<void *>(freed.front().first), freed.front().second);
            freed.pop_front();
        }
        sizes.erase(piece);
        return bytes;
    }

    static constexpr std::size_t FREED_MAX = 10000;
    std::deque<std::pair<Address, std::size_t>> freed;
};

Pieces device, host;
std::size_t used_bytes = 0;

Address allocate(std::size_t bytes) {
    if (used_bytes + bytes > TOTAL_BYTES) return 0;
    used_bytes += bytes;
    return device.add(bytes);
}

void release(Address address) { used_bytes -= device.remove(address); }

struct Stream {
    std::deque<Work> waiting;
    std::uint64_t asked = 0, done = 0;
    bool is_captured = false;
    std::vector<Work> captured;
};

std::set<Stream *> streams;

/// Does what a stream was asked for up to a count.
void reach(Stream *stream, std::uint64_t count) {
    while (streams.count(stream) && stream->done < count && !stream->waiting.empty()) {
        Work work = std::move(stream->waiting.front());
        stream->waiting.pop_front();
        work();
        stream->done++;
    }
}

void reach_all() {
    for (Stream *stream : std::set<Stream *>(streams)) reach(stream, stream->asked);
}

void ask(Stream *stream, Work work) {
    if (!streams.count(stream)) refuse("a stream is asked that is not there");
    if (stream->is_captured) {
        stream->captured.push_back(std::move(work));
        return;
    }
    stream->waiting.push_back(std::move(work));
    stream->asked++;
    if (SEED < 0) reach(stream, stream->asked);
    if (SEED <= 0 || below(3) > 0) return;
    for (Stream *other : std::set<Stream *>(streams)) reach(other, other->done + below(other->asked - other->done + 1));
}

struct Event {
    Stream *stream = nullptr;
    std::uint64_t count = 0;
    bool is_timed = false;
    std::shared_ptr<double> ms = std::make_shared<double>(0);
};

typedef std::vector<Work> Graph;

} // namespace

/// What must be so for most calls.
#define WITHIN                                                                                                         \
    if (!context) return NO_CONTEXT;                                                                                   \
    std::lock_guard<std::recursive_mutex> locked(lock);                                                                \
    if (lost) return lost

CALL(cuInit, unsigned) { return OK; }
CALL(cuDriverGetVersion, int *version) { return *version = static_cast<int>(chosen("DRIVER_VERSION", 13000)), OK; }
CALL(cuGetErrorName, int, const char **text) { return *text = "an error", OK; }
CALL(cuGetErrorString, int, const char **text) { return *text = "the driver of the tests says so", OK; }

CALL(cuDeviceGetCount, int *count) { return *count = 2, OK; }
CALL(cuDeviceGet, int *number, int ordinal) { return *number = ordinal, OK; }
CALL(cuDeviceGetName, char *name, int bytes, int) { return std::snprintf(name, bytes, "the host"), OK; }
CALL(cuDeviceTotalMem_v2, std::size_t *bytes, int) { return *bytes = TOTAL_BYTES, OK; }

CALL(cuDeviceGetAttribute, int *value, int attribute, int) {
    long capability = chosen("DRIVER_CAPABILITY", 90);
    switch (attribute) {
    case 16: *value = 5; return OK; // multiprocessors
    case 75: *value = static_cast<int>(capability / 10); return OK;
    case 76: *value = static_cast<int>(capability % 10); return OK;
    default: return INVALID;
    }
}

CALL(cuDevicePrimaryCtxRetain, void **made, int) { return *made = &lock, OK; }
CALL(cuDevicePrimaryCtxRelease_v2, int) { return OK; }
CALL(cuCtxSetCurrent, void *chosen) { return context = chosen, OK; }

CALL(cuDeviceGetDefaultMemPool, void **pool, int) { return *pool = &device, OK; }
CALL(cuMemPoolCreate, void **pool, const void *) { return *pool = &device, OK; }
CALL(cuMemPoolDestroy, void *) { return OK; }
CALL(cuMemPoolSetAttribute, void *, int, void *) { return OK; }
CALL(cuMemPoolGetAttribute, void *, int, std::uint64_t *value) { return *value = 0, OK; }
CALL(cuMemPoolTrimTo, void *, std::size_t) { return OK; }

CALL(cuMemGetInfo_v2, std::size_t *free, std::size_t *total) {
    WITHIN;
    *free = TOTAL_BYTES - used_bytes, *total = TOTAL_BYTES;
    return OK;
}

CALL(cuMemAlloc_v2, Address *address, std::size_t bytes) {
    WITHIN;
    return (*address = allocate(bytes)) ? OK : OUT_OF_MEMORY;
}

CALL(cuMemFree_v2, Address address) {
    WITHIN;
    reach_all();
    release(address);
    return OK;
}

CALL(cuMemAllocFromPoolAsync, Address *address, std::size_t bytes, void *, Stream *) {
    WITHIN;
    // What is to be freed may be had once it is.
    if (!(*address = allocate(bytes))) reach_all(), *address = allocate(bytes);
    return *address ? OK : OUT_OF_MEMORY;
}

CALL(cuMemFreeAsync, Address address, Stream *stream) {
    WITHIN;
    ask(stream, [=] { release(address); });
    return OK;
}

CALL(cuMemHostAlloc, Address *address, std::size_t bytes, unsigned) {
    WITHIN;
    *address = host.add(bytes);
    return OK;
}

CALL(cuMemFreeHost, Address address) {
    WITHIN;
    reach_all();
    host.remove(address);
    return OK;
}

namespace {

void copy(Stream *stream, Address target, Address source, Address there, Address here, std::size_t bytes) {
    host.require(here, bytes, "a copy through memory of the host that is not pinned");
    if (stream->is_captured) refuse("a copy in a graph, which would come from the same place again");
    ask(stream, [=] {
        host.require(here, bytes, "a copy through memory of the host that was freed");
        device.require(there, bytes, "a copy through memory of the device that is not there");
        std::memcpy(reinterpret_cast<void *>(target), reinterpret_cast<void *>(source), bytes);
    });
}

} // namespace

CALL(cuMemcpyHtoDAsync_v2, Address target, Address source, std::size_t bytes, Stream *stream) {
    WITHIN;
    copy(stream, target, source, target, source, bytes);
    return OK;
}

CALL(cuMemcpyDtoHAsync_v2, Address target, Address source, std::size_t bytes, Stream *stream) {
    WITHIN;
    copy(stream, target, source, source, target, bytes);
    // Who reads it before it has come finds NaN.
    if (stream->done < stream->asked) std::memset(reinterpret_cast<void *>(target), 0xff, bytes);
    return OK;
}

CALL(cuStreamCreate, Stream **stream, unsigned) {
    WITHIN;
    streams.insert(*stream = new Stream);
    return OK;
}

CALL(cuStreamDestroy_v2, Stream *stream) {
    WITHIN;
    reach(stream, stream->asked);
    streams.erase(stream);
    delete stream;
    return OK;
}

CALL(cuStreamSynchronize, Stream *stream) {
    WITHIN;
    if (stream->is_captured) return CAPTURED;
    reach(stream, stream->asked);
    return lost;
}

CALL(cuEventCreate, Event **event, unsigned flags) {
    WITHIN;
    *event = new Event;
    (*event)->is_timed = !(flags & 2);
    return OK;
}

CALL(cuEventDestroy_v2, Event *event) {
    WITHIN;
    delete event;
    return OK;
}

CALL(cuEventRecord, Event *event, Stream *stream) {
    WITHIN;
    auto ms = event->ms = std::make_shared<double>(0);
    ask(stream, [=] {
        *ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
    });
    event->stream = stream, event->count = stream->asked;
    return OK;
}

CALL(cuEventSynchronize, Event *event) {
    WITHIN;
    if (event->stream) reach(event->stream, event->count);
    return lost;
}

CALL(cuEventElapsedTime_v2, float *ms, Event *first, Event *last) {
    WITHIN;
    if (!first->is_timed || !last->is_timed) return INVALID;
    if (*first->ms == 0 || *last->ms == 0) return NOT_READY;
    *ms = static_cast<float>(*last->ms - *first->ms);
    return OK;
}

CALL(cuEventElapsedTime, float *ms, Event *first, Event *last) { return cuEventElapsedTime_v2(ms, first, last); }

CALL(cuStreamWaitEvent, Stream *stream, Event *event, unsigned) {
    WITHIN;
    Stream *other = event->stream;
    std::uint64_t count = event->count;
    if (other) ask(stream, [=] { reach(other, count); });
    return OK;
}

CALL(cuStreamBeginCapture_v2, Stream *stream, int) {
    WITHIN;
    stream->is_captured = true;
    return OK;
}

CALL(cuStreamIsCapturing, Stream *stream, int *is_captured) { return *is_captured = stream->is_captured, OK; }

CALL(cuStreamEndCapture, Stream *stream, Graph **graph) {
    WITHIN;
    *graph = new Graph(std::move(stream->captured));
    stream->is_captured = false;
    return OK;
}

CALL(cuGraphInstantiateWithFlags, Graph **made, const Graph *graph, std::uint64_t) {
    WITHIN;
    *made = new Graph(*graph);
    return OK;
}

CALL(cuGraphDestroy, Graph *graph) { return delete graph, OK; }
CALL(cuGraphUpload, Graph *, Stream *) { return OK; }

CALL(cuGraphExecDestroy, Graph *graph) {
    WITHIN;
    reach_all();
    delete graph;
    return OK;
}

CALL(cuGraphLaunch, Graph *graph, Stream *stream) {
    WITHIN;
    ask(stream, [=] {
        for (const Work &work : *graph) work();
    });
    return OK;
}

CALL(cuModuleLoadData, void **module, const void *) { return *module = &streams, OK; }
CALL(cuModuleUnload, void *) { return OK; }
CALL(cuFuncSetAttribute, const char *, int, int) { return OK; }

CALL(cuModuleGetFunction, const char **kernel, void *, const char *name) {
    // A name lives as long as the process.
    return emulated_has(name) ? (*kernel = strdup(name), OK) : NOT_FOUND;
}

CALL(cuLaunchKernel, const char *kernel, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
     unsigned shared_bytes, Stream *stream, void **arguments, void **) {
    WITHIN;
    if (x == 0 || y == 0 || z == 0 || threads == 0 || y > 65535 || z > 65535 || threads > 1024) return INVALID;
    std::size_t count;
    const std::size_t *sizes = emulated_arguments(kernel, &count);
    std::vector<std::vector<char>> copies;
    for (std::size_t i = 0; i < count; i++) {
        const char *argument = static_cast<const char *>(arguments[i]);
        copies.emplace_back(argument, argument + sizes[i]);
    }
    ask(stream, [=]() mutable {
        std::vector<void *> pointers;
        for (std::vector<char> &copy : copies) pointers.push_back(copy.data());
        unsigned grid[] = {x, y, z}, size[] = {threads, 1, 1};
        int outcome = emulated_launch(kernel, grid, size, shared_bytes, pointers.data());
        if (outcome == 0) return;
        std::fprintf(stderr, "driver: '%s' ends as %d, see emulated.cpp\n", kernel, outcome);
        lost = FAILED;
    });
    return OK;
}

namespace {

struct Operation {
    int epilogue = 1, is_transposed = 0, bias_type = -1;
    Address bias = 0;

    bool has_bias() const { return epilogue & 4; }
    bool has_relu() const { return epilogue & 2; }
    bool has_gelu() const { return epilogue & 32; }
};

/// Column by column.
struct Matrix {
    int type;
    std::uint64_t rows, columns;
    std::int64_t stride;

    std::size_t width() const { return type == F32 ? 4 : 2; }
    std::size_t bytes() const { return ((columns - 1) * stride + rows) * width(); }

    float get(Address address, std::uint64_t place) const {
        unsigned bits = 0;
        std::memcpy(&bits, reinterpret_cast<const char *>(address) + place * width(), width());
        if (type == F16) return emulated::float_of_f16(static_cast<unsigned short>(bits));
        return emulated::float_of_bits(type == BF16 ? bits << 16 : bits);
    }

    void set(Address address, std::uint64_t place, float wide) const {
        unsigned bits = emulated::bits_of_float(wide);
        if (type == F16) bits = emulated::f16_of_float(wide);
        if (type == BF16) bits = emulated::bf16_of_float(wide);
        std::memcpy(reinterpret_cast<char *>(address) + place * width(), &bits, width());
    }
};

/// Whether there is such a product `y = w x`.
int check(const Operation &operation, const Matrix &w, const Matrix &x, const Matrix &y) {
    std::uint64_t outputs = operation.is_transposed ? w.columns : w.rows;
    std::uint64_t inputs = operation.is_transposed ? w.rows : w.columns;
    if (inputs != x.rows || outputs != y.rows || x.columns != y.columns) return BAD_VALUE;
    for (const Matrix *matrix : {&w, &x, &y}) {
        if (matrix->stride < static_cast<std::int64_t>(matrix->rows)) return BAD_VALUE;
        // Stricter than is known of it.
        if (operation.has_gelu() && matrix->stride % 8) return NOT_SUPPORTED;
    }
    if (operation.has_bias() != (operation.bias != 0)) return BAD_VALUE;
    bool is_of_type = !operation.has_bias() || operation.bias_type == y.type;
    return w.type == x.type && is_of_type ? OK : NOT_SUPPORTED;
}

float activated(const Operation &operation, float sum) {
    if (operation.has_relu() && sum < 0) return 0;
    if (!operation.has_gelu()) return sum;
    return 0.5f * sum * (1 + std::tanh(0.7978846f * (sum + 0.044715f * sum * sum * sum)));
}

/// As cuBLASLt has it, with room for the first eight words of an algorithm.
struct Found {
    std::uint64_t algorithm[8];
    std::size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
};

/// Of an algorithm that is one; the second of two.
const std::uint64_t ALGORITHM = 77;

} // namespace

CALL(cublasLtCreate, void **handle) { return context ? (*handle = &lock, OK) : INVALID; }
CALL(cublasLtDestroy, void *) { return OK; }
CALL(cublasLtMatmulPreferenceCreate, void **preference) { return *preference = &lock, OK; }
CALL(cublasLtMatmulPreferenceDestroy, void *) { return OK; }
CALL(cublasLtMatmulPreferenceSetAttribute, void *, int, const void *, std::size_t) { return OK; }
CALL(cublasLtMatmulDescDestroy, Operation *operation) { return delete operation, OK; }
CALL(cublasLtMatrixLayoutDestroy, Matrix *matrix) { return delete matrix, OK; }

CALL(cublasLtMatmulDescCreate, Operation **operation, int compute, int scale) {
    *operation = new Operation;
    // Sums of f32, in full.
    return compute == 68 && scale == F32 ? OK : NOT_SUPPORTED;
}

CALL(cublasLtMatmulDescSetAttribute, Operation *operation, int attribute, const void *value, std::size_t bytes) {
    void *target = nullptr;
    if (attribute == 3) target = &operation->is_transposed;
    if (attribute == 7) target = &operation->epilogue;
    if (attribute == 8) target = &operation->bias;
    if (attribute == 26) target = &operation->bias_type;
    if (!target || bytes != (attribute == 8 ? 8 : 4)) return BAD_VALUE;
    std::memcpy(target, value, bytes);
    return OK;
}

CALL(cublasLtMatrixLayoutCreate, Matrix **matrix, int type, std::uint64_t rows, std::uint64_t columns,
     std::int64_t stride) {
    *matrix = new Matrix{type, rows, columns, stride};
    return OK;
}

CALL(cublasLtMatmulAlgoGetHeuristic, void *, const Operation *operation, const Matrix *w, const Matrix *x,
     const Matrix *, const Matrix *y, void *, int wanted, Found *found, int *count) {
    if (int status = check(*operation, *w, *x, *y)) return status;
    *count = wanted < 3 ? wanted : 3;
    // The third does not do.
    for (int i = 0; i < *count; i++) found[i] = Found{{ALGORITHM + i}, 0, i < 2 ? OK : NOT_SUPPORTED, 1, {}};
    return OK;
}

CALL(cublasLtMatmul, void *, const Operation *given, const float *alpha, Address w_at, const Matrix *w_is, Address x_at,
     const Matrix *x_is, const float *beta, Address before, const Matrix *, Address y_at, const Matrix *y_is,
     const std::uint64_t *algorithm, Address workspace, std::size_t workspace_bytes, Stream *stream) {
    WITHIN;
    if (int status = check(*given, *w_is, *x_is, *y_is)) return status;
    if (algorithm[0] < ALGORITHM || algorithm[0] > ALGORITHM + 1 || before != y_at || *alpha != 1) return BAD_VALUE;
    Operation operation = *given;
    Matrix w = *w_is, x = *x_is, y = *y_is;
    bool is_added = *beta != 0;
    ask(stream, [=] {
        const char *missing = "a product of memory that is not there";
        device.require(w_at, w.bytes(), missing);
        device.require(x_at, x.bytes(), missing);
        device.require(y_at, y.bytes(), missing);
        device.require(workspace, workspace_bytes, missing);
        if (operation.has_bias()) device.require(operation.bias, y.rows * y.width(), missing);
        std::uint64_t inputs = x.rows;
        std::vector<float> weights(y.rows * inputs), row(inputs);
        for (std::uint64_t output = 0; output < y.rows; output++) {
            for (std::uint64_t input = 0; input < inputs; input++) {
                std::uint64_t place = operation.is_transposed ? output * w.stride + input : input * w.stride + output;
                weights[output * inputs + input] = w.get(w_at, place);
            }
        }
        for (std::uint64_t column = 0; column < y.columns; column++) {
            for (std::uint64_t input = 0; input < inputs; input++) row[input] = x.get(x_at, column * x.stride + input);
            for (std::uint64_t output = 0; output < y.rows; output++) {
                const float *weight = &weights[output * inputs];
                float sum = 0;
                for (std::uint64_t input = 0; input < inputs; input++) sum += weight[input] * row[input];
                std::uint64_t place = column * y.stride + output;
                if (is_added) sum += y.get(y_at, place);
                if (operation.has_bias()) sum += y.get(operation.bias, output);
                y.set(y_at, place, activated(operation, sum));
            }
        }
    });
    return OK;
}
