//! Matrices and inputs of layers in bf16, in the layouts that the CPU's products read.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lehr_kernels::bf16::{Forms, Panels, Side, pack, pack_rows};
use lehr_kernels::buffer::CpuBuffer;
use lehr_kernels::quant::StoredMatrix;

use crate::{DType, Result, Shape};

/// Copies of a matrix W `[rows, columns]` for products in bf16, made at their first use: W and Wᵀ
/// as right operands. A linear map multiplies by one in its forward pass and by the other for the
/// gradient of its input. [`WeightPanels::refresh`] keeps them in step with the f32 values.
#[derive(Debug, Default)]
pub(crate) struct WeightPanels {
    plain: Slot,
    transposed: Slot,
}

type Slot = Mutex<Option<Arc<Panels>>>;

fn lock(slot: &Slot) -> MutexGuard<'_, Option<Arc<Panels>>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WeightPanels {
    /// W, or Wᵀ, of the matrix with these values as the right operand of a product.
    ///
    /// # Errors
    /// If there is no memory.
    pub(crate) fn get(
        &self,
        values: &[f32],
        (rows, columns): (usize, usize),
        is_transposed: bool,
    ) -> Result<Arc<Panels>> {
        let mut slot = lock(if is_transposed { &self.transposed } else { &self.plain });
        if let Some(panels) = &*slot {
            return Ok(Arc::clone(panels));
        }
        let (width, steps) = if is_transposed { (rows, columns) } else { (columns, rows) };
        let mut panels = Panels::uninit(Side::Right, width, steps)?;
        let mut forms = Forms::default();
        match is_transposed {
            true => forms.right_transposed = Some(&mut panels),
            false => forms.right = Some(&mut panels),
        }
        pack(values, columns, (rows, columns), forms);
        Ok(Arc::clone(slot.insert(Arc::new(panels))))
    }

    /// [`WeightPanels::get`] for a stored matrix, whose numbers are decoded part by part.
    ///
    /// # Errors
    /// If there is no memory.
    pub(crate) fn get_stored(
        &self,
        matrix: &StoredMatrix,
        is_transposed: bool,
    ) -> Result<Arc<Panels>> {
        /// Numbers of a part, 4 MiB.
        const PART: usize = 1 << 20;
        let mut slot = lock(if is_transposed { &self.transposed } else { &self.plain });
        if let Some(panels) = &*slot {
            return Ok(Arc::clone(panels));
        }
        let (rows, columns) = (matrix.rows(), matrix.cols());
        let (width, steps) = if is_transposed { (rows, columns) } else { (columns, rows) };
        let mut panels = Panels::uninit(Side::Right, width, steps)?;
        let step = (PART / columns.max(1)).next_multiple_of(32).min(rows);
        let mut part = CpuBuffer::uninit(DType::F32, step * columns)?;
        for first in (0..rows).step_by(step.max(1)) {
            let n = step.min(rows - first);
            let part = &mut part.as_mut_slice::<f32>()[..n * columns];
            matrix.dequantize_rows(first..first + n, part);
            let mut forms = Forms::default();
            match is_transposed {
                true => forms.right_transposed = Some(&mut panels),
                false => forms.right = Some(&mut panels),
            }
            pack_rows(part, columns, (n, columns), (first, rows), forms);
        }
        Ok(Arc::clone(slot.insert(Arc::new(panels))))
    }

    /// Writes the copies that exist anew after a change of the values, in place if no graph holds
    /// them.
    pub(crate) fn refresh(&self, values: &[f32], shape: Shape) {
        let &[rows, columns] = &*shape else { return };
        let (mut plain, mut transposed) = (lock(&self.plain), lock(&self.transposed));
        for slot in [&mut plain, &mut transposed] {
            // Who holds the old copy keeps it; the new one is made at its first use.
            if slot.as_mut().is_some_and(|panels| Arc::get_mut(panels).is_none()) {
                **slot = None;
            }
        }
        let forms = Forms {
            right: plain.as_mut().and_then(Arc::get_mut),
            right_transposed: transposed.as_mut().and_then(Arc::get_mut),
            ..Forms::default()
        };
        pack(values, columns, (rows, columns), forms);
    }
}

/// The input of a linear map, rounded.
#[derive(Clone)]
pub(crate) struct Input {
    /// For the map itself.
    pub(crate) left: Arc<Panels>,
    /// For the gradient of the weight, if it is wanted.
    pub(crate) for_weight: Option<Arc<Panels>>,
}

thread_local! {
    /// The last input: the maps of queries, keys and values, and those of gate and up, have the
    /// same one. With the version of its values, and whether its weight is `[in, out]`.
    static LAST: RefCell<Option<(u64, bool, Input)>> = const { RefCell::new(None) };
}

/// Returns the last input if it had these values.
pub(crate) fn last_input(values: &CpuBuffer, is_transposed: bool) -> Option<Input> {
    LAST.with_borrow(|last| {
        let (version, of, input) = last.as_ref()?;
        (*version == values.version() && *of == is_transposed).then(|| input.clone())
    })
}

/// Keeps an input for the next map.
pub(crate) fn remember_input(values: &CpuBuffer, is_transposed: bool, input: Input) {
    LAST.set(Some((values.version(), is_transposed, input)));
}

/// Forgets the last input, so that its memory is free.
pub(crate) fn forget_last_input() {
    LAST.set(None);
}
