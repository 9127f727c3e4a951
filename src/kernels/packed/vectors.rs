//! The loop that every vector unit runs over tiles.

/// How many bytes before they are used columns are asked for from memory: few rows outrun what the machine foresees.
pub const AHEAD: usize = 16 << 10;

/// A function `$name(task, count)` that writes the sums of the first `count` rows of a block, `$rows` of them at once and
/// of each `$strips` strips of two vectors. `$column` is 4 bytes of inputs of as many columns as a vector has places, and `$row`
/// what is read of one row for these, everywhere the same, `$read` of its next `$bytes` bytes, or as many as of a column;
/// `$dot` adds their product to `$sum`.
macro_rules! kernel {
    ($name:ident, $features:literal, $vector:ty, $ops:ident, $rows:literal, |$sum:ident, $row:ident, $column:ident| $dot:expr) => {
        kernel!($name, $features, $vector, $ops, $rows, 4: |at| $ops::splat(at), |$sum, $row, $column| $dot);
    };
    ($name:ident, $features:literal, $vector:ty, $ops:ident, $rows:literal,
     $bytes:literal: |$at:ident| $read:expr, |$sum:ident, $row:pat_param, $column:ident| $dot:expr) => {
        #[target_feature(enable = $features)]
        pub unsafe fn $name(task: Task, count: usize) {
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn some<const ROWS: usize>(task: Task) {
                let mut sums = [[$ops::zero(); 2]; ROWS];
                let (mut rows, mut columns) = (task.rows, task.columns);
                // SAFETY: the caller has the tiles and the sums of so many rows.
                unsafe {
                    for _ in 0..task.steps {
                        for group in 0..WIDTH {
                            let first = columns.add(group * 64);
                            let pair = [$ops::load(first), $ops::load(first.add($ops::SECOND))];
                            // It is no access: there need be nothing.
                            _mm_prefetch::<_MM_HINT_T1>(first.wrapping_add(AHEAD).cast());
                            _mm_prefetch::<_MM_HINT_T1>(first.wrapping_add(AHEAD + $ops::SECOND).cast());
                            for (place, sums) in sums.iter_mut().enumerate() {
                                let $at = rows.add(place * task.row + group * $bytes);
                                let $row = $read;
                                for (sum, column) in sums.iter_mut().zip(pair) {
                                    let ($sum, $column): ($vector, $vector) = (*sum, column);
                                    *sum = $dot;
                                }
                            }
                        }
                        (rows, columns) = (rows.wrapping_add(task.step), columns.add(2 * TILE));
                    }
                    for (place, [first, second]) in sums.into_iter().enumerate() {
                        $ops::store(task.y.add(place * PANEL), first);
                        $ops::store(task.y.add(place * PANEL + $ops::LANES), second);
                    }
                }
            }
            for vector in $ops::strips() {
                let mut row = 0;
                while row < count {
                    // As many in one go as in another.
                    let left = count - row;
                    let now = left.div_ceil(left.div_ceil($rows));
                    let task = task.at(row, vector);
                    // SAFETY: as the caller has it.
                    unsafe { by_count!(now, some, task) };
                    row += now;
                }
            }
        }
    };
}

/// Calls a function of so many rows.
macro_rules! by_count {
    ($count:expr, $f:ident, $task:expr) => {
        match $count {
            1 => $f::<1>($task),
            2 => $f::<2>($task),
            3 => $f::<3>($task),
            4 => $f::<4>($task),
            5 => $f::<5>($task),
            6 => $f::<6>($task),
            7 => $f::<7>($task),
            8 => $f::<8>($task),
            9 => $f::<9>($task),
            10 => $f::<10>($task),
            11 => $f::<11>($task),
            _ => $f::<12>($task),
        }
    };
}

pub(super) use {by_count, kernel};
