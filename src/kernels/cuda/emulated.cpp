// Runs kernels on the CPU: the threads of a block are fibers that take turns wherever they wait for each other.
#include "emulated.hpp"

#include <cstdint>
#include <cstdlib>
#include <sys/mman.h>
#include <vector>

#if !(defined(__x86_64__) && defined(__ELF__))
#include <ucontext.h>
#endif

__thread emulated::Place threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

namespace {

constexpr int LANES = 32;
constexpr std::size_t STACK = 64 * 1024;
/// Memory of a block that a GPU gives without being asked for more.
constexpr std::size_t SHARED_BYTES = 48 * 1024;

enum Outcome { DONE = 0, UNKNOWN = 1, STUCK = 2, TOO_MUCH_MEMORY = 3 };

const Kernel *kernels = nullptr;

#if defined(__x86_64__) && defined(__ELF__)

/// Where a fiber that is not running has left off: the registers that a call preserves lie on its stack.
typedef void *Context;

extern "C" void emulated_switch(Context *from, Context to);

asm(R"(
    .text
    .globl emulated_switch
    .hidden emulated_switch
    .type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulated_switch, .-emulated_switch
)");

void change(Context &from, Context &to) { emulated_switch(&from, to); }

void prepare(Context &context, char *stack, void (*begin)()) {
    // The return address stands as after a call: 8 bytes off a multiple of 16. Below it are six registers.
    void **top = reinterpret_cast<void **>(stack + STACK - 16);
    *--top = nullptr;
    *--top = reinterpret_cast<void *>(begin);
    context = top - 6;
    for (int i = 0; i < 6; i++) static_cast<void **>(context)[i] = nullptr;
}

#else

typedef ucontext_t Context;

void change(Context &from, Context &to) { swapcontext(&from, &to); }

void prepare(Context &context, char *stack, void (*begin)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, begin, 0);
}

#endif

struct Copy {
    void *target;
    const void *source;
};

struct Fiber {
    Context context;
    Place place;
    int number;
    /// How often its warp has done something together.
    unsigned together;
    std::vector<Copy> copies;
};

struct Warp {
    /// Lanes that wait, and for what.
    int waiting;
    Together what;
    /// Lanes that have it behind them may be about the next thing already: memory for two in turn.
    alignas(16) char memory[2][2048];
};

struct Shared {
    const void *key;
    char *memory;
};

/// Numbers of threads, first in, first out; each is in it once at most.
struct Queue {
    std::vector<int> numbers;
    std::size_t first, count;

    void push(int number) { numbers[(first + count++) % numbers.size()] = number; }

    int pop() {
        int number = numbers[first];
        first = (first + 1) % numbers.size();
        count--;
        return number;
    }
};

/// The block that runs on this thread, and memory that the next one uses again.
struct Block {
    const Kernel *kernel = nullptr;
    void **arguments = nullptr;
    Context scheduler;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<Shared> shared;
    std::size_t shared_bytes = 0;
    Queue ready;
    Fiber *running = nullptr;
    int threads = 0, waiting = 0, unfinished = 0;
    Outcome outcome = DONE;
    char *stacks = nullptr;
    std::size_t stacks_bytes = 0;
    alignas(16) char shared_memory[SHARED_BYTES];

    ~Block() {
        if (stacks) munmap(stacks, stacks_bytes);
    }

    void prepare_threads();
    Outcome run(bool is_backwards);
    void run_next();
    [[noreturn]] void end(Outcome outcome);
    int lanes(int warp) const { return std::min(LANES, threads - warp * LANES); }
};

thread_local Block *block = nullptr;

/// What a fiber does first and last.
void begin() {
    block->kernel->call(block->kernel->function, block->arguments);
    block->unfinished--;
    if (block->unfinished == 0) block->end(DONE);
    block->run_next();
    std::abort();
}

void Block::prepare_threads() {
    threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
    fibers.resize(threads);
    warps.resize((threads + LANES - 1) / LANES);
    ready.numbers.resize(threads);
    std::size_t bytes = static_cast<std::size_t>(threads) * STACK;
    if (bytes <= stacks_bytes) return;
    if (stacks) munmap(stacks, stacks_bytes);
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    stacks = static_cast<char *>(memory);
    stacks_bytes = bytes;
}

/// Every other block begins with its last thread: what only one order of the threads makes right is then noticed.
Outcome Block::run(bool is_backwards) {
    std::memset(shared_memory, 0xff, shared_bytes);
    shared.clear();
    shared_bytes = 0;
    waiting = 0;
    unfinished = threads;
    outcome = DONE;
    ready.first = ready.count = 0;
    for (Warp &warp : warps) warp.waiting = 0;
    for (int i = 0; i < threads; i++) {
        int number = is_backwards ? threads - 1 - i : i;
        Fiber &fiber = fibers[number];
        unsigned n = static_cast<unsigned>(number), plane = blockDim.x * blockDim.y;
        fiber.place = {n % blockDim.x, n / blockDim.x % blockDim.y, n / plane};
        fiber.number = number;
        fiber.together = 0;
        fiber.copies.clear();
        prepare(fiber.context, stacks + number * STACK, begin);
        ready.push(number);
    }
    running = &fibers[ready.pop()];
    threadIdx = running->place;
    change(scheduler, running->context);
    return outcome;
}

/// Leaves the running thread, which comes back when somebody has put it into the queue.
void Block::run_next() {
    if (ready.count == 0) end(STUCK);
    Fiber *left = running;
    running = &fibers[ready.pop()];
    threadIdx = running->place;
    change(left->context, running->context);
}

/// Ends the block where it is; its threads never go on.
void Block::end(Outcome result) {
    outcome = result;
    Context unused;
    change(unused, scheduler);
    std::abort();
}

const Kernel *find(const char *name) {
    const Kernel *kernel = kernels;
    while (kernel && std::strcmp(kernel->name, name) != 0) kernel = kernel->next;
    return kernel;
}

} // namespace

const Kernel *enlist(const Kernel *kernel) {
    const Kernel *before = kernels;
    kernels = kernel;
    return before;
}

int lane() { return block->running->number % LANES; }

void *memory_of_warp() {
    Fiber &fiber = *block->running;
    return block->warps[fiber.number / LANES].memory[fiber.together % 2];
}

void wait_for_warp(Together what) {
    Fiber &fiber = *block->running;
    int number = fiber.number / LANES;
    Warp &warp = block->warps[number];
    if (warp.waiting > 0 && warp.what != what) block->end(STUCK);
    warp.what = what;
    fiber.together++;
    if (++warp.waiting < block->lanes(number)) {
        block->run_next();
        return;
    }
    warp.waiting = 0;
    for (int i = 0; i < block->lanes(number); i++) {
        if (number * LANES + i != fiber.number) block->ready.push(number * LANES + i);
    }
}

void wait_for_block() {
    if (++block->waiting < block->threads) {
        block->run_next();
        return;
    }
    block->waiting = 0;
    for (int i = 0; i < block->threads; i++) {
        if (i != block->running->number) block->ready.push(i);
    }
}

void *memory_of_block(const void *key, std::size_t bytes) {
    for (const Shared &shared : block->shared) {
        if (shared.key == key) return shared.memory;
    }
    char *memory = block->shared_memory + block->shared_bytes;
    block->shared_bytes += (bytes + 15) / 16 * 16;
    if (block->shared_bytes > SHARED_BYTES) {
        block->shared_bytes = SHARED_BYTES;
        block->end(TOO_MUCH_MEMORY);
    }
    block->shared.push_back({key, memory});
    return memory;
}

/// The target is spoilt until the copy is waited for.
void copy_later(void *target, const void *source) {
    if (reinterpret_cast<std::uintptr_t>(target) % 16 || reinterpret_cast<std::uintptr_t>(source) % 16) std::abort();
    std::memset(target, 0xff, 16);
    block->running->copies.push_back({target, source});
}

void wait_for_copies() {
    for (const Copy &copy : block->running->copies) std::memcpy(copy.target, copy.source, 16);
    block->running->copies.clear();
}

} // namespace emulated

extern "C" int emulated_has(const char *name) { return emulated::find(name) != nullptr; }

/// Runs a kernel. 0: done; 1: there is none of this name; 2: threads wait for what never comes, or lanes of a warp for
/// different things; 3: the block asks for more memory than a GPU gives.
extern "C" int emulated_launch(const char *name, const unsigned *grid, const unsigned *size, void **arguments) {
    static thread_local emulated::Block memory;
    emulated::Block &block = memory;
    emulated::block = &block;
    block.kernel = emulated::find(name);
    if (!block.kernel) return emulated::UNKNOWN;
    block.arguments = arguments;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {size[0], size[1], size[2]};
    block.prepare_threads();
    bool is_backwards = false;
    for (unsigned z = 0; z < grid[2]; z++) {
        for (unsigned y = 0; y < grid[1]; y++) {
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                emulated::Outcome outcome = block.run(is_backwards);
                if (outcome != emulated::DONE) return outcome;
                is_backwards = !is_backwards;
            }
        }
    }
    return emulated::DONE;
}
