//! Products of tiles by AVX-512, with its BF16 and VNNI where the machine has them.
#![expect(unsafe_code, reason = "instructions that are not in the language")]

use super::rows::{Block, Span};
use super::tiles::{Kind, PANEL, Sums, TILE, Tile, WIDTH};
use super::unit::{Kernel, Task};
use super::vectors::{AHEAD, by_count, kernel};
use std::arch::x86_64::*;

/// Whether this machine has it.
pub fn is_there() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

/// Whether it multiplies and rounds to bf16.
pub fn has_bf16() -> bool {
    is_there() && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512bf16")
}

/// Whether it multiplies pairs of bf16 sooner than it widens them to f32 and multiplies these. Zen 4 has twice the products of
/// f32 a cycle; Emerald Rapids has half of them, so Intel's processors widen.
pub fn multiplies_bf16_fast() -> bool {
    let vendor = __cpuid(0);
    has_bf16() && [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
}

/// Some rows of a block times a panel of columns; see [`Unit::multiply`](super::unit::Unit::multiply).
pub fn multiply(kind: Kind, rows: Block, columns: &[Tile], y: &mut [Sums]) {
    let kernel = match kind {
        Kind::Single => single,
        Kind::Half if has_bf16() => half,
        Kind::Half => unreachable!("pairs of bf16 are multiplied by what has an instruction for them"),
        Kind::Widened => widened,
        Kind::Integers if is_x86_feature_detected!("avx512vnni") => integers,
        Kind::Integers => integers_widened,
        Kind::Planes => unreachable!("tiles of planes are not multiplied by this unit"),
    };
    assert!(is_there(), "AVX-512");
    // SAFETY: the machine has what the kernel needs, by the arms above.
    unsafe { run(kernel, kind, rows, columns, y) }
}

/// By one of the kernels of a kind, which the machine must have.
unsafe fn run(kernel: Kernel, kind: Kind, rows: Block, columns: &[Tile], y: &mut [Sums]) {
    let (task, count) = Task::new(kind, rows, columns, y);
    // SAFETY: the task has the tiles and the rows.
    unsafe { kernel(task, count) }
}

kernel!(single, "avx512f", __m512, zmm, 12, |sum, row, column| _mm512_fmadd_ps(row, column, sum));

kernel!(half, "avx512f,avx512bf16", __m512, zmm, 12, |sum, row, column| {
    _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512, __m512bh>(row), std::mem::transmute::<__m512, __m512bh>(column))
});

kernel!(widened, "avx512f", __m512, zmm, 12, 8: |at| (zmm::splat(at), zmm::splat(at.add(4))),
        |sum, (first, second), column| {
    let lower = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(column)));
    let keep = _mm512_set1_epi32(!0xffff);
    let upper = _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(column), keep));
    _mm512_fmadd_ps(second, upper, _mm512_fmadd_ps(first, lower, sum))
});

kernel!(integers, "avx512f,avx512vnni", __m512, zmm, 12, |sum, row, column| {
    let (sum, row) = (_mm512_castps_si512(sum), _mm512_castps_si512(row));
    _mm512_castsi512_ps(_mm512_dpbusd_epi32(sum, row, _mm512_castps_si512(column)))
});

// Of the four numbers the even ones and the odd ones, each in 16 bits.
kernel!(integers_widened, "avx512f,avx512bw", __m512, zmm, 8, |sum, row, column| {
    let (row, column) = (_mm512_castps_si512(row), _mm512_castps_si512(column));
    let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(column));
    let even = _mm512_madd_epi16(_mm512_and_si512(row, _mm512_set1_epi16(0xff)), even);
    let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(row), _mm512_srai_epi16::<8>(column));
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(sum), _mm512_add_epi32(even, odd)))
});

/// What a vector of 16 numbers is made from, and goes to.
mod zmm {
    use super::*;

    pub const LANES: usize = 16;
    /// Bytes from one vector of a strip to the next.
    pub const SECOND: usize = TILE;

    /// The strips of a panel, by their first 16 columns.
    pub fn strips() -> [usize; 1] {
        [0]
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn zero() -> __m512 {
        _mm512_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn load(from: *const u8) -> __m512 {
        // SAFETY: the caller has 64 bytes there.
        unsafe { _mm512_loadu_ps(from.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn splat(from: *const u8) -> __m512 {
        // SAFETY: the caller has 4 bytes there.
        _mm512_set1_ps(unsafe { from.cast::<f32>().read_unaligned() })
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn store(to: *mut f32, vector: __m512) {
        // SAFETY: the caller has room for 16 numbers there.
        unsafe { _mm512_storeu_ps(to, vector) }
    }
}

/// A row in so many planes, at its place in tiles; see `rows::Rows`.
///
/// # Panics
/// Where the machine has no BF16.
pub fn write_planes<const PLANES: usize>(tiles: &mut [Tile], place: usize, row: &[f32]) {
    assert!(has_bf16(), "AVX-512 with BF16");
    // SAFETY: the machine has these instructions.
    unsafe { planes::<PLANES>(tiles, place, row) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn planes<const PLANES: usize>(tiles: &mut [Tile], place: usize, row: &[f32]) {
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
        for (plane, tile) in tiles.iter_mut().enumerate() {
            let target = &mut tile.0[place * 64..(place + 1) * 64];
            // SAFETY: both are plain bits of 64 bytes.
            let both: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) };
            // SAFETY: the target has 64 bytes.
            unsafe { _mm512_storeu_si512(target.as_mut_ptr().cast(), both) };
            if plane + 1 < PLANES {
                let wide = |half: __m256i| _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
                low = _mm512_sub_ps(low, wide(_mm512_castsi512_si256(both)));
                high = _mm512_sub_ps(high, wide(_mm512_extracti64x4_epi64(both, 1)));
            }
        }
    }
}

/// A row as integers, at its place in tiles, and what they stand for; see `rows::Rows`.
///
/// # Panics
/// Where the machine has no AVX-512.
pub fn write_integers(tiles: &mut [Tile], place: usize, row: &[f32]) -> Span {
    assert!(is_there() && place < WIDTH, "AVX-512");
    // SAFETY: the machine has these instructions.
    unsafe { integers_of_row(tiles, place, row) }
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn integers_of_row(tiles: &mut [Tile], place: usize, row: &[f32]) -> Span {
    let (whole, rest) = row.as_chunks::<64>();
    // What fills up the last ones is no lower and no higher, and multiplied by zeros.
    let mut last = [row.first().copied().unwrap_or_default(); 64];
    last[..rest.len()].copy_from_slice(rest);
    let all = || whole.iter().chain((!rest.is_empty()).then_some(&last));
    let (mut lowest, mut highest) = (_mm512_set1_ps(f32::INFINITY), _mm512_set1_ps(f32::NEG_INFINITY));
    // What is not finite makes it so, which neither of these would.
    let (zero, mut nothing) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    for numbers in all() {
        for vector in numbers.as_chunks::<16>().0 {
            // SAFETY: a vector has 16 numbers.
            let x = unsafe { _mm512_loadu_ps(vector.as_ptr()) };
            (lowest, highest) = (_mm512_min_ps(lowest, x), _mm512_max_ps(highest, x));
            nothing = _mm512_fmadd_ps(x, zero, nothing);
        }
    }
    let nothing = _mm512_reduce_add_ps(nothing);
    let (lowest, highest) = (_mm512_reduce_min_ps(lowest) + nothing, _mm512_reduce_max_ps(highest) + nothing);
    let span = Span::of(lowest, highest);
    let (low, per_unit) = (_mm512_set1_ps(span.lowest), _mm512_set1_ps(span.per_unit()));
    // Packing leaves four numbers of each vector in a quarter.
    let in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (numbers, tile) in all().zip(tiles) {
        let mut integers = [_mm512_setzero_si512(); 4];
        for (integers, vector) in integers.iter_mut().zip(numbers.as_chunks::<16>().0) {
            // SAFETY: a vector has 16 numbers.
            let x = unsafe { _mm512_loadu_ps(vector.as_ptr()) };
            *integers = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(x, low), per_unit));
        }
        let [a, b, c, d] = integers;
        let bytes = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
        // SAFETY: a place of a tile has 64 bytes.
        unsafe {
            let target = tile.0.as_mut_ptr().add(place * 64);
            _mm512_storeu_si512(target.cast(), _mm512_permutexvar_epi32(in_order, bytes));
        }
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::packed::rows::plain_integers;
    use crate::kernels::packed::tests::check_unit;

    #[test]
    fn rows_of_integers_are_the_plain_ones() {
        if !is_there() {
            return println!("skipped: no AVX-512");
        }
        for width in [1, 15, 64, 100, 384] {
            let row = crate::kernels::sample::normal(3.0, width).to_vec1::<f32>().unwrap();
            let empty = || vec![Tile([7; TILE]); Kind::Integers.tiles(width)];
            let (mut ours, mut plain) = (empty(), empty());
            let (a, b) = (write_integers(&mut ours, 3, &row), plain_integers(&mut plain, 3, &row));
            assert_eq!((a.scale, a.lowest), (b.scale, b.lowest));
            for (place, x) in row.iter().enumerate() {
                let [ours, plain] = [&ours, &plain].map(|tiles| tiles[place / 64].0[3 * 64 + place % 64]);
                assert_eq!(ours, plain, "{x}");
            }
            let outside = |tile: &Tile| tile.0[..3 * 64].iter().chain(&tile.0[4 * 64..]).all(|byte| *byte == 7);
            assert!(ours.iter().all(outside));
        }
    }

    #[test]
    fn every_kernel_is_the_plain_loops() {
        if !is_there() {
            return println!("skipped: no AVX-512");
        }
        let check = |kind, kernel: Kernel| {
            // The machine has what the kernel needs, by the conditions here.
            check_unit(kind, |rows, columns, y| unsafe { run(kernel, kind, rows, columns, y) });
        };
        check(Kind::Single, single);
        check(Kind::Widened, widened);
        check(Kind::Integers, integers_widened);
        if has_bf16() {
            check(Kind::Half, half);
        }
        if is_x86_feature_detected!("avx512vnni") {
            check(Kind::Integers, integers);
        }
    }
}
