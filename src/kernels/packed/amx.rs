//! The matrix unit of Intel's processors since 2023 (AMX): products of tiles of 16 rows of 64 bytes, summed up in f32 or i32.
#![expect(unsafe_code, reason = "tiles are not in the language")]

use super::tiles::{Kind, Tile, WIDTH};
use std::arch::asm;
use std::sync::LazyLock;

/// Whether this machine has it, and the system lets this process use it.
pub fn is_there() -> bool {
    static IS_THERE: LazyLock<bool> = LazyLock::new(|| {
        use std::arch::x86_64::__cpuid_count;
        // Leaf 7, EDX: AMX-BF16, AMX-TILE, AMX-INT8.
        const BITS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
        let has_tiles = __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & BITS == BITS;
        let has_vectors = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw");
        has_tiles && has_vectors && may_use_tiles()
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

    /// `y = a b`: rows of one or two tiles times two tiles of columns. `a` holds a tile after the other along the inputs
    /// for each of the `rows` tiles, `b` pairs of tiles; of several planes those of one place together. `y` has rows of
    /// `2 * WIDTH` numbers, f32 or i32.
    ///
    /// # Panics
    /// Where lengths do not fit.
    pub fn multiply(&self, kind: Kind, rows: &[&[Tile]], b: &[Tile], y: &mut [[f32; 2 * WIDTH]]) {
        let (a_planes, b_planes) = kind.planes();
        let steps = b.len() / (2 * b_planes);
        assert!(steps > 0 && b.len() == steps * 2 * b_planes, "tiles of the weight");
        assert!(rows.iter().all(|a| a.len() == steps * a_planes), "tiles of the rows");
        assert!((1..=2).contains(&rows.len()) && y.len() == rows.len() * WIDTH, "rows");
        let (first, last, y) = (rows[0].as_ptr(), rows[rows.len() - 1].as_ptr(), y.as_mut_ptr());
        // SAFETY: every tile that is loaded lies in `a` or `b`, every one that is stored in `y`, by the assertions; the
        // tiles are configured while `self` is there, and no other code uses them.
        unsafe {
            match (kind, rows.len()) {
                (Kind::Exact, 2) => exact_two(first.cast(), last.cast(), b.as_ptr().cast(), steps, y.cast()),
                (Kind::Exact, _) => exact_one(first.cast(), b.as_ptr().cast(), steps, y.cast()),
                (Kind::Half, 2) => half_two(first.cast(), last.cast(), b.as_ptr().cast(), steps, y.cast()),
                (Kind::Half, _) => half_one(first.cast(), b.as_ptr().cast(), steps, y.cast()),
                (Kind::Integers, 2) => integers_two(first.cast(), last.cast(), b.as_ptr().cast(), steps, y.cast()),
                (Kind::Integers, _) => integers_one(first.cast(), b.as_ptr().cast(), steps, y.cast()),
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

/// A row in so many planes, at its place in tiles; see `rows::Rows`.
///
/// # Panics
/// Where the machine has no AMX.
pub fn write_planes<const PLANES: usize>(tiles: &mut [Tile], place: usize, row: &[f32]) {
    assert!(is_there(), "AMX");
    // SAFETY: a machine with AMX has these instructions, which `is_there` looked for.
    unsafe { planes::<PLANES>(tiles, place, row) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn planes<const PLANES: usize>(tiles: &mut [Tile], place: usize, row: &[f32]) {
    use std::arch::x86_64::*;
    for (step, tiles) in tiles.chunks_exact_mut(PLANES).enumerate() {
        let part = row.get(step * 32..).unwrap_or_default();
        let mut numbers = [0f32; 32];
        let numbers = part.first_chunk::<32>().unwrap_or_else(|| {
            numbers[..part.len()].copy_from_slice(part);
            &numbers
        });
        // SAFETY: 32 numbers are two vectors.
        let (mut low, mut high) =
            unsafe { (_mm512_loadu_ps(numbers.as_ptr()), _mm512_loadu_ps(numbers[16..].as_ptr())) };
        for tile in tiles {
            let target = &mut tile.0[place * 64..(place + 1) * 64];
            // SAFETY: both are plain bits of 64 bytes.
            let plane: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) };
            // SAFETY: the target has 64 bytes.
            unsafe { _mm512_storeu_si512(target.as_mut_ptr().cast(), plane) };
            let wide = |half: __m256i| _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
            low = _mm512_sub_ps(low, wide(_mm512_castsi512_si256(plane)));
            high = _mm512_sub_ps(high, wide(_mm512_extracti64x4_epi64(plane, 1)));
        }
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
    exact_two,
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
    exact_one,
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
of_two!(integers_two, "1024", "2048", upper!("0"), lower!("0"), columns!("0", "1024"), four!("tdpbssd"));
of_one!(integers_one, "1024", "2048", upper!("0"), columns!("0", "1024"), two!("tdpbssd"));
