//! The matrix unit of Intel's processors since 2023 (AMX): products of tiles of 16 rows of 64 bytes, summed up in f32 or i32.
#![expect(unsafe_code, reason = "tiles are not in the language")]

use super::tiles::{Kind, Sums, Tile, WIDTH};
use std::arch::asm;
use std::sync::LazyLock;

/// Whether this machine has it, and the system lets this process use it.
pub fn is_there() -> bool {
    static IS_THERE: LazyLock<bool> = LazyLock::new(|| {
        use std::arch::x86_64::__cpuid_count;
        // Leaf 7, EDX: AMX-BF16, AMX-TILE, AMX-INT8.
        const BITS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
        let has_tiles = __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & BITS == BITS;
        has_tiles && super::avx512::is_there() && super::avx512::has_bf16() && may_use_tiles()
    });
    *IS_THERE
}

/// Asks Linux for the tiles' state, which every thread of the process then has.
fn may_use_tiles() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let answer: i64;
    // SAFETY: the call has no effect on memory; the kernel changes RAX, RCX and R11 alone.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => answer, in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA, out("rcx") _, out("r11") _, options(nostack));
    }
    answer == 0
}

/// The calling thread's tiles, all of full size while this lives.
pub struct Tiles(());

impl Tiles {
    /// # Panics
    /// Where there are none.
    pub fn new() -> Self {
        #[repr(C, align(64))]
        struct Configuration {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        assert!(is_there(), "AMX");
        let mut all = Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        all.row_bytes[..8].fill(64);
        all.rows[..8].fill(16);
        // SAFETY: there are tiles, and the configuration is the 64 bytes that palette 1 asks for.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &all, options(nostack, readonly)) };
        Self(())
    }

    /// See [`Unit::multiply`](super::unit::Unit::multiply); of one or two blocks of rows.
    pub fn multiply(&self, kind: Kind, rows: &[&[Tile]], columns: &[Tile], y: &mut [Sums]) {
        let planes = kind.planes();
        let steps = columns.len() / (2 * planes);
        assert!(steps > 0 && columns.len() == steps * 2 * planes, "tiles of the weight");
        assert!(rows.iter().all(|a| a.len() == steps * planes), "tiles of the rows");
        assert!((1..=2).contains(&rows.len()) && y.len() == rows.len() * WIDTH, "rows");
        let (first, last) = (rows[0].as_ptr().cast(), rows[rows.len() - 1].as_ptr().cast());
        let (columns, y) = (columns.as_ptr().cast(), y.as_mut_ptr().cast());
        // SAFETY: every tile that is loaded lies in `rows` or `columns`, every one that is stored in `y`, by the
        // assertions; the tiles are configured while `self` is there, and no other code uses them.
        unsafe {
            match (kind, rows.len()) {
                (Kind::Planes, 2) => planes_two(first, last, columns, steps, y),
                (Kind::Planes, _) => planes_one(first, columns, steps, y),
                (Kind::Half, 2) => half_two(first, last, columns, steps, y),
                (Kind::Half, _) => half_one(first, columns, steps, y),
                (Kind::Integers, 2) => integers_two(first, last, columns, steps, y),
                (Kind::Integers, _) => integers_one(first, columns, steps, y),
                (Kind::Single | Kind::Widened, _) => unreachable!("rows of f32 are not multiplied by this unit"),
            }
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: there are tiles, or `new` had panicked.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Two tiles of rows at `tmm4`, `tmm5` times two of columns at `tmm6`, `tmm7`, onto `tmm0..=tmm3`.
macro_rules! four {
    ($dot:literal) => {
        concat!(
            $dot,
            " tmm0, tmm4, tmm6\n",
            $dot,
            " tmm1, tmm4, tmm7\n",
            $dot,
            " tmm2, tmm5, tmm6\n",
            $dot,
            " tmm3, tmm5, tmm7\n"
        )
    };
}

/// One tile of rows at `tmm4` times two of columns, onto `tmm0` and `tmm1`.
macro_rules! two {
    ($dot:literal) => {
        concat!($dot, " tmm0, tmm4, tmm6\n", $dot, " tmm1, tmm4, tmm7\n")
    };
}

/// Two tiles of columns, so many bytes on.
macro_rules! columns {
    ($first:literal, $second:literal) => {
        concat!("tileloadd tmm6, [{b} + {row}*1 + ", $first, "]\ntileloadd tmm7, [{b} + {row}*1 + ", $second, "]\n")
    };
}

macro_rules! upper {
    ($plane:literal) => {
        concat!("tileloadd tmm4, [{first} + {row}*1 + ", $plane, "]\n")
    };
}

macro_rules! lower {
    ($plane:literal) => {
        concat!("tileloadd tmm5, [{last} + {row}*1 + ", $plane, "]\n")
    };
}

/// A kernel of one tile of rows: `body` once a step, with so many bytes from one step of `a` and of `b` to the next.
macro_rules! of_one {
    ($name:ident, $a:literal, $b:literal, $($body:expr),+) => {
        unsafe fn $name(first: *const u8, b: *const u8, steps: usize, y: *mut u8) {
            // SAFETY: see `Tiles::multiply`.
            unsafe {
                asm!(
                    "tilezero tmm0\ntilezero tmm1",
                    "2:", $($body,)+
                    concat!("add {first}, ", $a), concat!("add {b}, ", $b), "dec {steps}", "jnz 2b",
                    "tilestored [{y} + {out}*1], tmm0\ntilestored [{y} + {out}*1 + 64], tmm1",
                    first = inout(reg) first => _, b = inout(reg) b => _, steps = inout(reg) steps => _,
                    y = in(reg) y, row = in(reg) 64usize, out = in(reg) 128usize,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _, options(nostack)
                );
            }
        }
    };
}

/// The same of two.
macro_rules! of_two {
    ($name:ident, $a:literal, $b:literal, $($body:expr),+) => {
        unsafe fn $name(first: *const u8, last: *const u8, b: *const u8, steps: usize, y: *mut u8) {
            // SAFETY: see `Tiles::multiply`.
            unsafe {
                asm!(
                    "tilezero tmm0\ntilezero tmm1\ntilezero tmm2\ntilezero tmm3",
                    "2:", $($body,)+
                    concat!("add {first}, ", $a), concat!("add {last}, ", $a), concat!("add {b}, ", $b),
                    "dec {steps}", "jnz 2b",
                    "tilestored [{y} + {out}*1], tmm0\ntilestored [{y} + {out}*1 + 64], tmm1",
                    "tilestored [{y} + {out}*1 + 2048], tmm2\ntilestored [{y} + {out}*1 + 2112], tmm3",
                    first = inout(reg) first => _, last = inout(reg) last => _, b = inout(reg) b => _,
                    steps = inout(reg) steps => _, y = in(reg) y, row = in(reg) 64usize, out = in(reg) 128usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack)
                );
            }
        }
    };
}

// Of three planes of numbers all products but the three smallest, high ones last.
of_two!(
    planes_two,
    "3072",
    "6144",
    upper!("0"),
    lower!("0"),
    columns!("4096", "5120"),
    four!("tdpbf16ps"),
    columns!("2048", "3072"),
    four!("tdpbf16ps"),
    columns!("0", "1024"),
    four!("tdpbf16ps"),
    upper!("2048"),
    lower!("2048"),
    four!("tdpbf16ps"),
    upper!("1024"),
    lower!("1024"),
    four!("tdpbf16ps"),
    columns!("2048", "3072"),
    four!("tdpbf16ps")
);
of_one!(
    planes_one,
    "3072",
    "6144",
    upper!("0"),
    columns!("4096", "5120"),
    two!("tdpbf16ps"),
    columns!("2048", "3072"),
    two!("tdpbf16ps"),
    columns!("0", "1024"),
    two!("tdpbf16ps"),
    upper!("2048"),
    two!("tdpbf16ps"),
    upper!("1024"),
    two!("tdpbf16ps"),
    columns!("2048", "3072"),
    two!("tdpbf16ps")
);
of_two!(half_two, "1024", "2048", upper!("0"), lower!("0"), columns!("0", "1024"), four!("tdpbf16ps"));
of_one!(half_one, "1024", "2048", upper!("0"), columns!("0", "1024"), two!("tdpbf16ps"));
of_two!(integers_two, "1024", "2048", upper!("0"), lower!("0"), columns!("0", "1024"), four!("tdpbusd"));
of_one!(integers_one, "1024", "2048", upper!("0"), columns!("0", "1024"), two!("tdpbusd"));
