//! Tensors whose elements are not in row-major order: transposed ones, columns.

/// The strides of a tensor in its file.
#[derive(Clone, Debug)]
pub(crate) struct Strides {
    /// Elements from one index to the next, per dimension.
    pub(crate) elements: Vec<usize>,
    /// Bytes per element.
    pub(crate) element_bytes: usize,
}

impl Strides {
    /// Gathers the elements of a tensor of `shape` in row-major order.
    ///
    /// `bytes` begins with the first element and reaches at least to the last. The tensor has at
    /// most as many elements as `bytes` has room for.
    pub(crate) fn gather(&self, bytes: &[u8], shape: &[usize]) -> Vec<u8> {
        let n: usize = shape.iter().product();
        let size = self.element_bytes;
        let mut out = Vec::with_capacity(n * size);
        let mut index = vec![0; shape.len()];
        let mut at = 0;
        for _ in 0..n {
            out.extend_from_slice(&bytes[at * size..(at + 1) * size]);
            // Advance the index like an odometer.
            for (d, stride) in self.elements.iter().enumerate().rev() {
                index[d] += 1;
                at += stride;
                if index[d] < shape[d] {
                    break;
                }
                at -= index[d] * stride;
                index[d] = 0;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::Strides;

    #[test]
    fn a_transposed_matrix_is_read_by_columns() {
        let stored = [1, 2, 3, 4, 5, 6];
        let strides = Strides { elements: vec![1, 3], element_bytes: 1 };
        assert_eq!(strides.gather(&stored, &[3, 2]), [1, 4, 2, 5, 3, 6]);
    }

    #[test]
    fn elements_of_several_bytes_stay_whole() {
        let stored = [1, 2, 3, 4, 5, 6, 7, 8];
        let strides = Strides { elements: vec![2], element_bytes: 2 };
        assert_eq!(strides.gather(&stored, &[2]), [1, 2, 5, 6]);
    }
}
