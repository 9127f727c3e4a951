//! Rows of a table, picked by ids.

use super::math::vectorized;
use super::threads::made_rows;
use super::view::{dense, with_dense};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// `table [rows, width]`, in f32, bf16 or f16, and `ids [n]`, in u32 -> the rows that they name, in f32, added to
/// `onto [n, width]` where there is one: `[n, width]`.
///
/// # Errors
/// An id that the table has no row for.
pub fn look_up(table: &Tensor, ids: &Tensor, onto: Option<&Tensor>) -> Result<Tensor> {
    table.apply_op2_no_bwd(ids, &LookUp { onto })
}

struct LookUp<'a> {
    onto: Option<&'a Tensor>,
}

impl CustomOp2 for LookUp<'_> {
    fn name(&self) -> &'static str {
        "look_up"
    }

    fn cpu_fwd(&self, table: &CpuStorage, t_l: &Layout, ids: &CpuStorage, i_l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (&[rows, width], Some((first, end))) = (t_l.dims(), i_l.contiguous_offsets()) else {
            bail!("rows are looked up in a matrix, got {t_l:?} and {i_l:?}")
        };
        let ids = &ids.as_slice::<u32>()?[first..end];
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
    use candle_core::{DType, Device};

    #[test]
    fn it_is_candles_index_select() {
        let table = normal(1.0, (7, 20));
        let onto = normal(1.0, (5, 20));
        let ids = Tensor::new(&[6u32, 0, 3, 3, 1], &Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let table = table.to_dtype(dtype).unwrap();
            let plain = table.index_select(&ids, 0).unwrap().to_dtype(DType::F32).unwrap();
            let vectors = |t: Tensor| t.to_vec2::<f32>().unwrap();
            assert_eq!(vectors(look_up(&table, &ids, None).unwrap()), vectors(plain.clone()));
            assert_eq!(vectors(look_up(&table, &ids, Some(&onto)).unwrap()), vectors((&onto + plain).unwrap()));
        }
        let beyond = Tensor::new(&[7u32], &Device::Cpu).unwrap();
        assert!(look_up(&table, &beyond, None).unwrap_err().to_string().contains("row 7 of a table of 7"));
    }
}
