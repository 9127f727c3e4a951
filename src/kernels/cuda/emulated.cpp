// Runs kernels on the CPU: the threads of a block are fibers that take turns wherever they wait for each other.
#include "races.hpp"
#include "warpgroup.cuh"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <sys/mman.h>
#include <unordered_map>
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
/// Memory of a block that the GPUs give which have what warpgroup.cuh names.
constexpr std::size_t LAUNCH_BYTES_MAX = 227 * 1024;

enum Outcome { DONE = 0, UNKNOWN = 1, STUCK = 2, TOO_MUCH_MEMORY = 3, HASTY = 4, RACE = 5 };

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
    int group;
};

struct Product {
    std::function<void()> make;
    int group;
};

/// What an address is told of copies that a thread has asked for, once they are there.
struct Arrival {
    int number;
    const void *address;
    std::vector<Copy> copies;
    std::function<void()> tell;
};

/// Where was copied to before an address was told of it.
struct Told {
    const void *address;
    void *target;
};

/// Bytes of a block's memory that a thread has written.
struct Written {
    void *place;
    int bytes;
};

struct Fiber {
    Context context;
    Place place;
    int number;
    /// How often its warp has done something together.
    unsigned together;
    std::vector<Copy> copies;
    /// Groups of them that have ended.
    int copy_groups;
    /// What it has written since it showed that to products, and what addresses it has waited for since.
    std::vector<Written> unshown;
    std::vector<const void *> waited_for;
    std::vector<Product> products;
    /// Groups that have ended.
    int product_groups;
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

/// A thread that waits for somebody to name an address.
struct Sleeper {
    const void *address;
    int number;
};

/// Numbers of threads, of which any comes next: what only one order makes right is then noticed. Each is in it once at most.
struct Queue {
    std::vector<int> numbers;
    unsigned state;

    void push(int number) { numbers.push_back(number); }

    /// Marsaglia's xorshift, so that the same kernel always runs in the same order.
    unsigned random() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        return state;
    }

    int pop() {
        std::swap(numbers[random() % numbers.size()], numbers.back());
        int number = numbers.back();
        numbers.pop_back();
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
    std::vector<Sleeper> sleepers;
    std::vector<Arrival> arrivals;
    std::vector<Told> told;
    /// Who has written words and not shown them to products yet.
    std::unordered_map<const void *, int> writers;
    std::size_t shared_bytes = 0, launch_bytes = 0;
    Queue ready;
    Fiber *running = nullptr;
    int threads = 0, waiting = 0, unfinished = 0;
    /// Whether products are made and copies arrive when they are asked for, and not when they are waited for: either may be.
    bool is_eager = races::ARE_LOOKED_FOR;
    Outcome outcome = DONE;
    char *stacks = nullptr;
    std::size_t stacks_bytes = 0;
    alignas(16) char shared_memory[SHARED_BYTES];
    alignas(1024) char launch_memory[LAUNCH_BYTES_MAX];
    /// What products read of it: what was copied there and shown to them.
    char shown_memory[LAUNCH_BYTES_MAX];

    ~Block() {
        if (stacks) munmap(stacks, stacks_bytes);
    }

    void prepare_threads();
    Outcome run();
    void run_next();
    void arrive();
    bool awaits_copies() const;
    [[noreturn]] void end(Outcome outcome);
    int lanes(int warp) const { return std::min(LANES, threads - warp * LANES); }
};

thread_local Block *block = nullptr;

/// What a fiber does first and last.
void begin() {
    block->kernel->call(block->kernel->function, block->arguments);
    if (!block->running->copies.empty() || block->awaits_copies()) block->end(HASTY);
    block->unfinished--;
    if (block->unfinished == 0) block->end(DONE);
    block->run_next();
    std::abort();
}

void Block::prepare_threads() {
    threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
    fibers.resize(threads);
    warps.resize((threads + LANES - 1) / LANES);
    std::size_t bytes = static_cast<std::size_t>(threads) * STACK;
    if (bytes <= stacks_bytes) return;
    if (stacks) munmap(stacks, stacks_bytes);
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    stacks = static_cast<char *>(memory);
    stacks_bytes = bytes;
}

Outcome Block::run() {
    std::memset(shared_memory, 0xff, shared_bytes);
    std::memset(launch_memory, 0xff, launch_bytes);
    std::memset(shown_memory, 0xff, launch_bytes);
    shared.clear();
    sleepers.clear();
    arrivals.clear();
    told.clear();
    writers.clear();
    shared_bytes = 0;
    waiting = 0;
    unfinished = threads;
    outcome = DONE;
    ready.numbers.clear();
    for (Warp &warp : warps) warp.waiting = 0;
    for (int number = 0; number < threads; number++) {
        Fiber &fiber = fibers[number];
        unsigned n = static_cast<unsigned>(number), plane = blockDim.x * blockDim.y;
        fiber.place = {n % blockDim.x, n / blockDim.x % blockDim.y, n / plane};
        fiber.number = number;
        fiber.together = 0;
        fiber.copies.clear();
        fiber.copy_groups = 0;
        fiber.unshown.clear();
        fiber.waited_for.clear();
        fiber.products.clear();
        fiber.product_groups = 0;
        prepare(fiber.context, stacks + number * STACK, begin);
        ready.push(number);
    }
    int number = static_cast<int>(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
    races::begin_block(number, threads, {{shared_memory, SHARED_BYTES}, {launch_memory, launch_bytes}, {stacks, stacks_bytes}});
    running = &fibers[ready.pop()];
    threadIdx = running->place;
    change(scheduler, running->context);
    running = nullptr;
    return outcome;
}

/// Leaves the running thread, which comes back when somebody has put it into the queue.
void Block::run_next() {
    while (!arrivals.empty() && (ready.numbers.empty() || ready.random() % 4 == 0)) arrive();
    if (ready.numbers.empty()) end(STUCK);
    Fiber *left = running;
    running = &fibers[ready.pop()];
    // What it waited for may have come while it looked for somebody else.
    if (running == left) return;
    threadIdx = running->place;
    change(left->context, running->context);
}

/// Copies of any thread's arrive, those that it has asked for first.
void Block::arrive() {
    int number = arrivals[ready.random() % arrivals.size()].number;
    auto first = std::find_if(arrivals.begin(), arrivals.end(), [=](const Arrival &a) { return a.number == number; });
    Arrival arrival = std::move(*first);
    arrivals.erase(first);
    for (const Copy &copy : arrival.copies) {
        std::memcpy(copy.target, copy.source, 16);
        told.push_back({arrival.address, copy.target});
    }
    arrival.tell();
}

/// Whether an address is still to be told of copies of the running thread.
bool Block::awaits_copies() const {
    auto is_own = [this](const Arrival &arrival) { return arrival.number == running->number; };
    return std::any_of(arrivals.begin(), arrivals.end(), is_own);
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

int thread() { return block && block->running ? block->running->number : -1; }

void end_for_race() { block->end(RACE); }

int lane() { return thread() % LANES; }

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
    if (what == MEET) races::meet(number * LANES, block->lanes(number));
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
    races::meet(0, block->threads);
    for (int i = 0; i < block->threads; i++) {
        if (i != block->running->number) block->ready.push(i);
    }
}

/// A GPU faults where a warp loads or stores a row that is not aligned.
void hold_to_alignment(const void *row) {
    if (reinterpret_cast<std::uintptr_t>(row) % 16) std::abort();
}

void read_row(void *y, const void *row) {
    hold_to_alignment(row);
    races::read(races::TOGETHER, {row, 16});
    std::memcpy(y, row, 16);
}

void write_word(unsigned *target, unsigned x) {
    races::write(races::TOGETHER, {target, sizeof x});
    *target = x;
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

char *memory_of_launch() { return block->launch_memory; }

namespace {

/// Where products find what was shown of a place.
char *shown(const void *place) {
    return block->shown_memory + (static_cast<const char *>(place) - block->launch_memory);
}

bool is_of_launch(const void *place) {
    const char *memory = block->launch_memory, *byte = static_cast<const char *>(place);
    return byte >= memory && byte < memory + block->launch_bytes;
}

} // namespace

unsigned short shown(const void *place, bool is_noted) {
    if (is_noted) races::read(races::PRODUCTS, {place, 2});
    unsigned short bits;
    std::memcpy(&bits, shown(place), sizeof bits);
    return bits;
}

void show() {
    Fiber &fiber = *block->running;
    auto show_written = [&](const Written &written) {
        for (int i = 0; i < written.bytes / 4; i++) {
            const void *word = static_cast<const unsigned *>(written.place) + i;
            auto writer = block->writers.find(word);
            // What another thread has written over it since is for that one to show.
            if (writer != block->writers.end() && writer->second != fiber.number) continue;
            std::memcpy(shown(word), word, 4);
            if (writer != block->writers.end()) block->writers.erase(writer);
        }
    };
    std::for_each(fiber.unshown.begin(), fiber.unshown.end(), show_written);
    for (const void *address : fiber.waited_for) {
        std::vector<Told> &told = block->told;
        auto is_other = [=](const Told &copy) { return copy.address != address; };
        auto known = std::stable_partition(told.begin(), told.end(), is_other);
        std::for_each(known, told.end(), [&](const Told &copy) { show_written({copy.target, 16}); });
        told.erase(known, told.end());
    }
    fiber.unshown.clear();
    fiber.waited_for.clear();
}

/// Products find NaN there until it is shown to them.
void write_unshown(unsigned *word) {
    if (!is_of_launch(word)) std::abort();
    std::memset(shown(word), 0xff, sizeof *word);
    block->running->unshown.push_back({word, sizeof *word});
    block->writers[word] = block->running->number;
}

/// The target is spoilt until the copy is waited for, or somebody is told of it.
void copy_later(void *target, const void *source) {
    if (reinterpret_cast<std::uintptr_t>(target) % 16 || reinterpret_cast<std::uintptr_t>(source) % 16) std::abort();
    std::memset(target, 0xff, 16);
    if (is_of_launch(target)) std::memset(shown(target), 0xff, 16);
    for (int i = 0; i < 4; i++) block->writers.erase(static_cast<unsigned *>(target) + i);
    races::read(races::COPIES, {source, 16});
    races::write(races::COPIES, {target, 16});
    block->running->copies.push_back({target, source, block->running->copy_groups});
}

namespace {

/// Calls `tell` when this thread's copies are there, of which an address then knows.
void tell_of_copies(const void *address, std::function<void()> tell) {
    Fiber &fiber = *block->running;
    block->arrivals.push_back({fiber.number, address, std::move(fiber.copies), std::move(tell)});
    fiber.copies.clear();
    while (block->is_eager && !block->arrivals.empty()) block->arrive();
}

void sleep_for(const void *address) {
    block->sleepers.push_back({address, block->running->number});
    block->run_next();
}

void wake_for(const void *address) {
    std::vector<Sleeper> &sleepers = block->sleepers;
    for (std::size_t i = 0; i < sleepers.size();) {
        if (sleepers[i].address != address) {
            i++;
            continue;
        }
        block->ready.push(sleepers[i].number);
        sleepers.erase(sleepers.begin() + static_cast<std::ptrdiff_t>(i));
    }
}

} // namespace

void end_group_of_copies() {
    block->running->copy_groups++;
    races::end_group(races::COPIES);
}

void wait_for_copies_but(int few) {
    Fiber &fiber = *block->running;
    auto is_older = [&](const Copy &copy) { return copy.group < fiber.copy_groups - few; };
    auto end = std::find_if_not(fiber.copies.begin(), fiber.copies.end(), is_older);
    std::for_each(fiber.copies.begin(), end, [&](const Copy &copy) {
        std::memcpy(copy.target, copy.source, 16);
        if (is_of_launch(copy.target)) fiber.unshown.push_back({copy.target, 16});
    });
    fiber.copies.erase(fiber.copies.begin(), end);
    races::wait_for_all_but(races::COPIES, few);
}

void wait_for_copies() {
    while (block->awaits_copies()) block->arrive();
    end_group_of_copies();
    wait_for_copies_but(0);
}

void multiply_later(std::function<void()> make) {
    // What this thread has waited for it must show itself, whoever else has.
    if (!block->running->waited_for.empty()) block->end(HASTY);
    if (block->is_eager) return make();
    block->running->products.push_back({std::move(make), block->running->product_groups});
}

void end_group_of_products() {
    block->running->product_groups++;
    races::end_group(races::PRODUCTS);
}

void wait_for_products_but(int few) {
    std::vector<Product> &products = block->running->products;
    std::size_t count = 0;
    while (count < products.size() && products[count].group < block->running->product_groups - few) {
        products[count++].make();
    }
    products.erase(products.begin(), products.begin() + static_cast<std::ptrdiff_t>(count));
    races::wait_for_all_but(races::PRODUCTS, few);
}

} // namespace emulated

void Counter::begin(int count) {
    races::write(races::ITSELF, {this, sizeof *this});
    arrivals = missing = static_cast<unsigned short>(count);
    round = 0;
}

void Counter::arrive() {
    races::arrive(races::ITSELF, this);
    count();
}

void Counter::arrive_with_copies() {
    races::arrive(races::COPIES, this);
    emulated::tell_of_copies(this, [this] { count(); });
}

void Counter::count() {
    races::read(races::ITSELF, {this, sizeof *this});
    if (--missing > 0) return;
    missing = arrivals;
    round++;
    races::complete(this);
    emulated::wake_for(this);
}

void Counter::wait(int parity) {
    races::read(races::ITSELF, {this, sizeof *this});
    while (static_cast<int>(round % 2) == parity) emulated::sleep_for(this);
    races::learn(this);
    emulated::block->running->waited_for.push_back(this);
}

extern "C" int emulated_has(const char *name) { return emulated::find(name) != nullptr; }

/// Bytes of each argument of a kernel that there is.
extern "C" const std::size_t *emulated_arguments(const char *name, std::size_t *count) {
    const emulated::Kernel *kernel = emulated::find(name);
    *count = kernel->count;
    return kernel->sizes;
}

/// Runs a kernel, of which every block has so many bytes that it shares. 0: done; 1: there is none of this name; 2: threads
/// wait for what never comes, or lanes of a warp for different things; 3: the block asks for more memory than a GPU gives; 4: a
/// thread multiplies what it has not shown to products, or ends before its copies are there; 5: there is a race, of which
/// emulated_race tells.
extern "C" int emulated_launch(const char *name, const unsigned *grid, const unsigned *size, unsigned shared_bytes,
                               void **arguments) {
    static thread_local emulated::Block memory;
    emulated::Block &block = memory;
    emulated::block = &block;
    block.kernel = emulated::find(name);
    if (!block.kernel) return emulated::UNKNOWN;
    if (shared_bytes > emulated::LAUNCH_BYTES_MAX) return emulated::TOO_MUCH_MEMORY;
    block.launch_bytes = shared_bytes;
    block.arguments = arguments;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {size[0], size[1], size[2]};
    block.prepare_threads();
    block.ready.state = 0x9e3779b9;
    races::begin_launch();
    for (unsigned z = 0; z < grid[2]; z++) {
        for (unsigned y = 0; y < grid[1]; y++) {
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                emulated::Outcome outcome = block.run();
                if (outcome != emulated::DONE) return outcome;
                // Orders are found whenever something is done, and best where it is done at once.
                block.is_eager = races::ARE_LOOKED_FOR || !block.is_eager;
            }
        }
    }
    return emulated::DONE;
}

extern "C" const char *emulated_race() { return races::told(); }

/// Memory of the device begins to be, or is no more: races are looked for there and in what blocks have.
extern "C" void emulated_allocated(const void *address, std::size_t bytes) { races::allocate({address, bytes}); }
extern "C" void emulated_freed(const void *address) { races::free(address); }
