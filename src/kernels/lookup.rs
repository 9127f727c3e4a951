//! Rows of a table, picked by ids.

use super::math::vectorized;
use super::threads::made_rows;
use super::view::{dense, with_dense};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};

/// `table [rows, width]`, in f32, bf16 or f16, and `ids [n]` -> the rows that they name, in f32, added to
/// `onto [n, width]` where there is one: `[n, width]`.
///
/// # Errors
/// An id that the table has no row for.
pub fn look_up(table: &Tensor, ids: &[u32], onto: Option<&Tensor>) -> Result<Tensor> {
    table.apply_op1_no_bwd(&LookUp { ids, onto })
}

/// The rows `ids` of `x [rows, width]`; a number past its end is a row of zeros.
pub fn pick(x: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let rows = x.dims()[0] as u32;
    let padded = if ids.iter().any(|id| *id >= rows) { x.pad_with_zeros(0, 0, 1)? } else { x.clone() };
    padded.index_select(&Tensor::from_iter(ids.iter().map(|id| rows.min(*id)), &Device::Cpu)?, 0)
}

struct LookUp<'a> {
    ids: &'a [u32],
    onto: Option<&'a Tensor>,
}

impl CustomOp1 for LookUp<'_> {
    fn name(&self) -> &'static str {
        "look_up"
    }

    fn cpu_fwd(&self, table: &CpuStorage, t_l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (ids, &[rows, width]) = (self.ids, t_l.dims()) else {
            bail!("rows are looked up in a matrix, got {t_l:?}")
        };
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            bail!("row {id} of a table of {rows}")
        }
        let places = |id: u32| id as usize * width..(id as usize + 1) * width;
        let Some((start, end)) = t_l.contiguous_offsets() else { bail!("a table must be dense, got {t_l:?}") };
        let y = with_dense(self.onto, |onto| {
            Ok(match table {
                CpuStorage::BF16(all) => picked(ids, width, onto, |id| &all[start..end][places(id)]),
                CpuStorage::F16(all) => picked(ids, width, onto, |id| &all[start..end][places(id)]),
                _ => {
                    let all = dense(table, t_l)?;
                    picked(ids, width, onto, |id| &all[places(id)])
                }
            })
        })?;
        Ok((CpuStorage::F32(y), Shape::from((ids.len(), width))))
    }
}

fn picked<'a, T: Copy + Into<f32> + 'a>(
    ids: &[u32],
    width: usize,
    onto: Option<&[f32]>,
    row: impl Fn(u32) -> &'a [T] + Sync,
) -> Vec<f32> {
    made_rows(ids.len(), width, |i, y| {
        let (row, onto) = (row(ids[i]), onto.map(|all| &all[i * width..(i + 1) * width]));
        vectorized(
            #[inline(always)]
            || match onto {
                Some(onto) => y.iter_mut().zip(onto).zip(row).for_each(|((y, o), x)| *y = o + (*x).into()),
                None => y.iter_mut().zip(row).for_each(|(y, x)| *y = (*x).into()),
            },
        );
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::sample::normal;
    use candle_core::DType;

    #[test]
    fn it_is_candles_index_select() {
        let table = normal(1.0, (7, 20));
        let onto = normal(1.0, (5, 20));
        let ids = [6u32, 0, 3, 3, 1];
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let table = table.to_dtype(dtype).unwrap();
            let plain =
                table.index_select(&Tensor::new(&ids, &Device::Cpu).unwrap(), 0).unwrap().to_dtype(DType::F32).unwrap();
            let vectors = |t: Tensor| t.to_vec2::<f32>().unwrap();
            assert_eq!(vectors(look_up(&table, &ids, None).unwrap()), vectors(plain.clone()));
            assert_eq!(vectors(look_up(&table, &ids, Some(&onto)).unwrap()), vectors((&onto + plain).unwrap()));
        }
        assert!(look_up(&table, &[7], None).unwrap_err().to_string().contains("row 7 of a table of 7"));
    }
}
