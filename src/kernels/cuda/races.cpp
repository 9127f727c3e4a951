// See races.hpp. The compiler has every load and store of a kernel call what ThreadSanitizer's library would define
// (-fsanitize=thread), and here it is defined.
#include "races.hpp"

#ifdef RACES
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace races {

namespace {

/// How often an actor has let others know of what it did. 0: never.
typedef unsigned Epoch;

/// Actors that have epochs of their own, and parts of a clock for each thread: theirs, and one for what threads read.
constexpr int ACTORS = PRODUCTS + 1, PARTS = ACTORS + 1;
constexpr int LANES = 32;
constexpr std::size_t WORD = 4;

struct Access {
    /// The instruction after it.
    const void *code;
    int block;
    Epoch epoch;
    short thread;
    unsigned char actor;
    /// Which of a word's bytes, a bit each.
    unsigned char bytes;
    bool is_write;
};

typedef std::vector<Access> Accesses;

/// What was done to a word that whoever comes next may know nothing of; of blocks before the last one, that they did.
struct Word {
    Accesses writes, reads;
    int block = 0;
    /// So many reads are looked through for those that others imply.
    std::size_t reads_max = 0;
};

/// Words side by side.
constexpr std::size_t PAGE = 1024;
typedef std::vector<Word> Page;

/// By parts and threads, up to which epoch something is known of them.
typedef std::vector<Epoch> Clock;

void learn_all(Clock &clock, const Clock &other) {
    if (clock.size() < other.size()) clock.resize(other.size());
    for (std::size_t i = 0; i < other.size(); i++) clock[i] = std::max(clock[i], other[i]);
}

/// What a counter knows from those who have arrived in this round, and from those of complete ones.
struct Rounds {
    Clock coming, complete;
};

/// What a thread knows, the epochs that its actors are in, and those that its groups have ended in.
struct Thread {
    Clock known;
    Epoch epochs[ACTORS];
    std::vector<Epoch> groups[ACTORS];
};

struct Launch {
    int block = 0;
    Memories memories = {};
    std::vector<Thread> threads;
    std::unordered_map<const void *, Rounds> counters;
    /// Of the block's own memory, by number, and those of them that are in use; and of the device's, by address.
    std::vector<Word> words;
    std::vector<std::size_t> in_use;
    std::unordered_map<std::uintptr_t, Page> device_words;
    std::vector<Memory> device_memory;
    /// Where the last word of the device's was found.
    Memory last_memory = {};
    std::uintptr_t last_page = 0;
    Word *last_words = nullptr;
    char told[512] = "";

    std::size_t place(int part, int thread) const { return part * threads.size() + thread; }
    bool is_before(const Access &before, const Access &now) const;
    bool is_of_device(std::uintptr_t address);
    Word &device_word(std::uintptr_t number);
    void come(std::uintptr_t address, std::size_t bytes, Access access);
    void come_to_word(Word &word, const Access &access, std::uintptr_t address);
    void hold_to(const Accesses &accesses, const Access &now, std::uintptr_t address);
    void forget_implied(Accesses &accesses, const Access &now);
    void tell(const Access &before, const Access &now, std::uintptr_t address);
};

/// The launch that runs on this thread of the host, and what of memory is nobody else's.
thread_local Launch *launch = nullptr;
thread_local Memory stacks = {};

std::mutex device_mutex;
std::map<std::uintptr_t, std::size_t> device_memory;

std::uintptr_t number(const void *address) { return reinterpret_cast<std::uintptr_t>(address); }

/// Whether an address lies in memory, and how many bytes from its beginning.
bool is_in(const Memory &memory, std::uintptr_t address, std::size_t &offset) {
    offset = address - number(memory.address);
    return offset < memory.bytes;
}

bool Launch::is_before(const Access &before, const Access &now) const {
    if (before.block != now.block) return false;
    bool are_together = before.actor == TOGETHER && now.actor == TOGETHER && before.thread / LANES == now.thread / LANES;
    if (are_together && !before.is_write && now.is_write) return true;
    bool is_read = before.actor % ACTORS == ITSELF && !before.is_write;
    std::size_t part = place(is_read ? ACTORS : before.actor % ACTORS, before.thread);
    return threads[now.thread].known[part] >= before.epoch;
}

bool Launch::is_of_device(std::uintptr_t address) {
    std::size_t offset;
    if (is_in(last_memory, address, offset)) return true;
    auto is_after = [](std::uintptr_t address, const Memory &memory) { return address < number(memory.address); };
    auto after = std::upper_bound(device_memory.begin(), device_memory.end(), address, is_after);
    if (after == device_memory.begin() || !is_in(*std::prev(after), address, offset)) return false;
    last_memory = *std::prev(after);
    return true;
}

Word &Launch::device_word(std::uintptr_t number) {
    if (!last_words || number / PAGE != last_page) {
        last_page = number / PAGE;
        Page &page = device_words[last_page];
        page.resize(PAGE);
        last_words = page.data();
    }
    return last_words[number % PAGE];
}

void Launch::come(std::uintptr_t address, std::size_t bytes, Access access) {
    std::size_t offset, shared_words = memories.shared.bytes / WORD;
    bool is_shared = is_in(memories.shared, address, offset), is_launch = !is_shared && is_in(memories.launch, address, offset);
    bool is_own = is_shared || is_launch;
    // What begins there and does not end there is of no use to anybody.
    if (is_own && offset + bytes > (is_shared ? memories.shared : memories.launch).bytes) std::abort();
    if (!is_own) {
        if (!is_of_device(address)) return;
        offset = address;
    }
    Thread &thread = threads[access.thread];
    access.block = block;
    access.epoch = thread.epochs[access.actor % ACTORS];
    for (std::size_t first = offset / WORD; first <= (offset + bytes - 1) / WORD; first++) {
        std::size_t begin = std::max(offset, first * WORD), end = std::min(offset + bytes, (first + 1) * WORD);
        access.bytes = static_cast<unsigned char>(((1u << (end - begin)) - 1) << (begin - first * WORD));
        std::size_t index = first + (is_launch ? shared_words : 0);
        Word &word = is_own ? words[index] : device_word(first);
        if (is_own && word.writes.empty() && word.reads.empty()) in_use.push_back(index);
        come_to_word(word, access, begin);
    }
}

/// Leaves one for all, of all their bytes.
void join(Accesses &accesses) {
    for (const Access &access : accesses) accesses[0].bytes |= access.bytes;
    if (!accesses.empty()) accesses.erase(accesses.begin() + 1, accesses.end());
}

void Launch::hold_to(const Accesses &accesses, const Access &now, std::uintptr_t address) {
    for (const Access &before : accesses) {
        if ((before.bytes & now.bytes) && !is_before(before, now)) tell(before, now, address);
    }
}

/// Whoever knows of an access knows of those that it knew of.
void Launch::forget_implied(Accesses &accesses, const Access &now) {
    auto is_implied = [&](const Access &before) { return !(before.bytes & ~now.bytes) && is_before(before, now); };
    accesses.erase(std::remove_if(accesses.begin(), accesses.end(), is_implied), accesses.end());
}

void Launch::come_to_word(Word &word, const Access &access, std::uintptr_t address) {
    if (word.block != block) {
        join(word.writes);
        join(word.reads);
        word.block = block;
    }
    Accesses &alike = access.is_write ? word.writes : word.reads;
    // Whoever came since then was held to that one.
    if (!alike.empty() && (word.reads.empty() || !access.is_write)) {
        const Access &last = alike.back();
        bool is_of_same = last.block == block && last.thread == access.thread && last.actor == access.actor;
        if (is_of_same && last.epoch == access.epoch && !(access.bytes & ~last.bytes)) return;
    }
    hold_to(word.writes, access, address);
    if (access.is_write) {
        hold_to(word.reads, access, address);
        forget_implied(word.writes, access);
    }
    if (access.is_write || word.reads.size() > word.reads_max) {
        forget_implied(word.reads, access);
        word.reads_max = 2 * word.reads.size() + 8;
    }
    alike.push_back(access);
}

/// Where an instruction is in the file that it was loaded from.
std::size_t place_in_file(const void *code) {
    Dl_info info = {};
    if (!dladdr(code, &info)) return 0;
    return number(code) - number(info.dli_fbase) - 1;
}

void Launch::tell(const Access &before, const Access &now, std::uintptr_t address) {
    const char *actors[] = {"", "a copy of ", "a product of ", "the warp of "};
    const char *done[] = {"reads", "writes"};
    std::snprintf(told, sizeof told,
                  "%sthread %d of block %d %s byte %zu, which %sthread %d of block %d %s, in any order "
                  "(addr2line: %#zx, %#zx)",
                  actors[now.actor], now.thread, now.block, done[now.is_write], static_cast<std::size_t>(address),
                  actors[before.actor], before.thread, before.block, done[before.is_write], place_in_file(now.code),
                  place_in_file(before.code));
    emulated::end_for_race();
}

void come(Actor actor, Memory memory, bool is_write, const void *code) {
    std::size_t offset;
    if (is_in(stacks, number(memory.address), offset)) return;
    int thread = emulated::thread();
    if (thread < 0) return;
    launch->come(number(memory.address), memory.bytes, {code, 0, 0, static_cast<short>(thread), actor, 0, is_write});
}

/// The running thread.
Thread &running() { return launch->threads[emulated::thread()]; }

/// Begins an epoch of a thread itself: what it does from now on is known to nobody else.
void begin_epoch(int number) {
    Thread &thread = launch->threads[number];
    thread.epochs[ITSELF]++;
    for (int part : {static_cast<int>(ITSELF), ACTORS}) thread.known[launch->place(part, number)] = thread.epochs[ITSELF];
}

} // namespace

void allocate(Memory memory) {
    std::lock_guard<std::mutex> lock(device_mutex);
    device_memory[number(memory.address)] = memory.bytes;
}

void free(const void *address) {
    std::lock_guard<std::mutex> lock(device_mutex);
    device_memory.erase(number(address));
}

void begin_launch() {
    static thread_local Launch own;
    launch = &own;
    launch->device_words.clear();
    launch->last_memory = {};
    launch->last_words = nullptr;
    launch->device_memory.clear();
    std::lock_guard<std::mutex> lock(device_mutex);
    for (const auto &[address, bytes] : device_memory) {
        launch->device_memory.push_back({reinterpret_cast<const void *>(address), bytes});
    }
}

void begin_block(int block, int threads, Memories memories) {
    launch->block = block;
    launch->memories = memories;
    stacks = memories.stacks;
    launch->counters.clear();
    launch->threads.resize(threads);
    for (int i = 0; i < threads; i++) {
        Thread &thread = launch->threads[i];
        thread.known.assign(threads * PARTS, 0);
        std::fill_n(thread.epochs, ACTORS, 1);
        for (std::vector<Epoch> &groups : thread.groups) groups.clear();
        begin_epoch(i);
    }
    for (std::size_t index : launch->in_use) launch->words[index] = {};
    launch->in_use.clear();
    launch->words.resize(memories.shared.bytes / WORD + (memories.launch.bytes + WORD - 1) / WORD);
}

void meet(int first, int count) {
    Clock all;
    for (int i = first; i < first + count; i++) learn_all(all, launch->threads[i].known);
    for (int i = first; i < first + count; i++) {
        launch->threads[i].known = all;
        begin_epoch(i);
    }
}

void read(Actor actor, Memory memory) { come(actor, memory, false, __builtin_return_address(0)); }

void write(Actor actor, Memory memory) { come(actor, memory, true, __builtin_return_address(0)); }

void end_group(Actor actor) {
    Thread &thread = running();
    thread.groups[actor].push_back(thread.epochs[actor]++);
}

void wait_for_all_but(Actor actor, int few) {
    Thread &thread = running();
    const std::vector<Epoch> &groups = thread.groups[actor];
    if (groups.size() <= static_cast<std::size_t>(few)) return;
    Epoch &known = thread.known[launch->place(actor, emulated::thread())];
    known = std::max(known, groups[groups.size() - 1 - few]);
}

void arrive(Actor actor, const void *counter) {
    Thread &thread = running();
    Clock &coming = launch->counters[counter].coming;
    coming.resize(thread.known.size());
    if (actor == ITSELF) {
        learn_all(coming, thread.known);
    } else {
        // What it has read told it what to copy. What it has written, copies tell nobody of.
        std::size_t reads = launch->place(ACTORS, emulated::thread());
        coming[reads] = thread.known[reads];
        coming[launch->place(actor, emulated::thread())] = thread.epochs[actor]++;
    }
    begin_epoch(emulated::thread());
}

void complete(const void *counter) {
    Rounds &rounds = launch->counters[counter];
    learn_all(rounds.complete, rounds.coming);
    rounds.coming.clear();
}

void learn(const void *counter) { learn_all(running().known, launch->counters[counter].complete); }

const char *told() { return launch->told; }

} // namespace races

extern "C" {

#define ACCESS(name, count, is_write)                                                                                  \
    void __tsan_##name##count(void *address) {                                                                         \
        races::come(races::ITSELF, {address, count}, is_write, __builtin_return_address(0));                           \
    }
#define ACCESSES(count)                                                                                                \
    ACCESS(read, count, false)                                                                                         \
    ACCESS(write, count, true)                                                                                         \
    ACCESS(volatile_read, count, false)                                                                                \
    ACCESS(volatile_write, count, true)                                                                                \
    ACCESS(unaligned_read, count, false)                                                                               \
    ACCESS(unaligned_write, count, true)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void *address, std::size_t bytes) {
    races::come(races::ITSELF, {address, bytes}, false, __builtin_return_address(0));
}

void __tsan_write_range(void *address, std::size_t bytes) {
    races::come(races::ITSELF, {address, bytes}, true, __builtin_return_address(0));
}

// Of these there is nothing to be known.
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
}
#endif
