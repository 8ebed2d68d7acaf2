//! The matrix of a layer in bf16, in the layouts that the CPU's products read.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lehr_kernels::bf16::{Forms, Panels, Side, pack};

use crate::{Result, Shape};

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
