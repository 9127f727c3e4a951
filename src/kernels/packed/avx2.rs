//! Products of tiles by AVX2 and FMA. What of bf16 and of integers AVX-512 has instructions for is widened here.
#![expect(unsafe_code, reason = "instructions that are not in the language")]

use super::rows::Block;
use super::tiles::{Kind, PANEL, Sums, TILE, Tile, WIDTH};
use super::unit::{Kernel, Task};
use super::vectors::{AHEAD, by_count, kernel};
use std::arch::x86_64::*;

/// Whether this machine has it.
pub fn is_there() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Some rows of a block times a panel of columns; see [`Unit::multiply`](super::unit::Unit::multiply).
pub fn multiply(kind: Kind, rows: Block, columns: &[Tile], y: &mut [Sums]) {
    let kernel: Kernel = match kind {
        Kind::Single => single,
        Kind::Widened => widened,
        Kind::Integers => integers,
        Kind::Planes | Kind::Half => unreachable!("rows of bf16 are not multiplied by this unit"),
    };
    assert!(is_there(), "AVX2");
    let (task, count) = Task::new(kind, rows, columns, y);
    // SAFETY: the machine has what the kernel needs, and the task the tiles and the rows.
    unsafe { kernel(task, count) }
}

kernel!(single, "avx2,fma", __m256, ymm, 6, |sum, row, column| _mm256_fmadd_ps(row, column, sum));

kernel!(widened, "avx2,fma", __m256, ymm, 5, 8: |at| (ymm::splat(at), ymm::splat(at.add(4))),
        |sum, (first, second), column| {
    let lower = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(column)));
    let keep = _mm256_set1_epi32(!0xffff);
    let upper = _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(column), keep));
    _mm256_fmadd_ps(second, upper, _mm256_fmadd_ps(first, lower, sum))
});

// Of the four numbers the even ones and the odd ones, each in 16 bits.
kernel!(integers, "avx2,fma", __m256, ymm, 4, |sum, row, column| {
    let (row, column) = (_mm256_castps_si256(row), _mm256_castps_si256(column));
    let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(column));
    let even = _mm256_madd_epi16(_mm256_and_si256(row, _mm256_set1_epi16(0xff)), even);
    let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(row), _mm256_srai_epi16::<8>(column));
    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum), _mm256_add_epi32(even, odd)))
});

/// What a vector of 8 numbers is made from, and goes to.
mod ymm {
    use super::*;

    pub const LANES: usize = 8;
    /// Bytes from one vector of a strip to the next.
    pub const SECOND: usize = 32;

    /// The strips of a panel, by the vector of 16 columns that each is.
    pub fn strips() -> [usize; 2] {
        [0, 1]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn zero() -> __m256 {
        _mm256_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn load(from: *const u8) -> __m256 {
        // SAFETY: the caller has 32 bytes there.
        unsafe { _mm256_loadu_ps(from.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn splat(from: *const u8) -> __m256 {
        // SAFETY: the caller has 4 bytes there.
        _mm256_set1_ps(unsafe { from.cast::<f32>().read_unaligned() })
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn store(to: *mut f32, vector: __m256) {
        // SAFETY: the caller has room for 8 numbers there.
        unsafe { _mm256_storeu_ps(to, vector) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::packed::tests::check_unit;

    #[test]
    fn every_kernel_is_the_plain_loops() {
        if !is_there() {
            return println!("skipped: no AVX2");
        }
        for kind in [Kind::Single, Kind::Widened, Kind::Integers] {
            check_unit(kind, |rows, columns, y| multiply(kind, rows, columns, y));
        }
    }
}
