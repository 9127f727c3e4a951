// Looks for races: two threads of a launch that come to the same memory, one of them to write there, with nothing that
// orders the two. A GPU may run them in either order, and the emulator in one that happens to be right.
//
// What a thread knows of goes from one to another where CUDA says so: at barriers, and from whoever arrives at a counter to
// whoever waits for it. Copies and products are actors of their own, of which a thread knows once it has waited for them.
// Between two blocks there is nothing at all. (C. Flanagan and S. Freund, FastTrack, PLDI 2009, without its compression.)
#pragma once

#include <cstddef>

namespace races {

/// Who comes to memory on behalf of a thread. TOGETHER is the thread itself in what its warp loads or stores as one: what a warp
/// has loaded so all its lanes have, whichever of them named the place, and may store over it.
enum Actor { ITSELF, COPIES, PRODUCTS, TOGETHER };

/// Bytes from an address on.
struct Memory {
    const void *address;
    std::size_t bytes;
};

/// What a block has for itself: SHARED's, that of its launch, and what no other thread comes to.
struct Memories {
    Memory shared, launch, stacks;
};

#ifdef RACES
constexpr bool ARE_LOOKED_FOR = true;

/// Memory of the device begins to be, or is no more.
void allocate(Memory memory);
void free(const void *address);

void begin_launch();
void begin_block(int number, int threads, Memories memories);

/// Threads wait for each other: `count` from `first` on.
void meet(int first, int count);

/// The running thread comes to memory, which it names.
void read(Actor actor, Memory memory);
void write(Actor actor, Memory memory);

/// The running thread ends a group of what it has asked for, and waits for all groups but the last few.
void end_group(Actor actor);
void wait_for_all_but(Actor actor, int few);

/// The running thread arrives at a counter, or has its copies do so; the counter's round is complete; the thread has waited
/// for that.
void arrive(Actor actor, const void *counter);
void complete(const void *counter);
void learn(const void *counter);

/// The race that was found last.
const char *told();
#else
constexpr bool ARE_LOOKED_FOR = false;

inline void allocate(Memory) {}
inline void free(const void *) {}
inline void begin_launch() {}
inline void begin_block(int, int, Memories) {}
inline void meet(int, int) {}
inline void read(Actor, Memory) {}
inline void write(Actor, Memory) {}
inline void end_group(Actor) {}
inline void wait_for_all_but(Actor, int) {}
inline void arrive(Actor, const void *) {}
inline void complete(const void *) {}
inline void learn(const void *) {}
inline const char *told() { return ""; }
#endif

} // namespace races

namespace emulated {

/// The number of the running thread within its block, -1 where none is.
int thread();

/// Ends the launch, of which races::told tells.
[[noreturn]] void end_for_race();

} // namespace emulated
