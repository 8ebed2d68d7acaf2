//! Descriptors of a product for cuBLASLt: the operation, the matrices, and the limits for the
//! choice of an algorithm.

use std::ffi::c_void;
use std::ptr;

use cudarc::cublaslt::sys;

use super::check;
use crate::blas::{Element, Epilogue, Matmul, Operand};
use lehr_kernels::Result;

fn data_type(element: Element) -> sys::cudaDataType {
    match element {
        Element::F32 => sys::cudaDataType::CUDA_R_32F,
        Element::BF16 => sys::cudaDataType::CUDA_R_16BF,
        Element::F16 => sys::cudaDataType::CUDA_R_16F,
        Element::E4M3 => sys::cudaDataType::CUDA_R_8F_E4M3,
        Element::E5M2 => sys::cudaDataType::CUDA_R_8F_E5M2,
    }
}

/// Returns the bytes of a value for an attribute.
fn bytes<V>(value: &V) -> (*const c_void, usize) {
    (ptr::from_ref(value).cast(), size_of::<V>())
}

pub(super) struct Operation(pub(super) sys::cublasLtMatmulDesc_t);

impl Operation {
    /// Describes the product for the library: our B is its first operand, our A its second.
    pub(super) fn new(product: &Matmul) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let mut handle = ptr::null_mut();
        let (compute, scale) =
            (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        check(
            // SAFETY: the handle is written by the call.
            unsafe { sys::cublasLtMatmulDescCreate(&raw mut handle, compute, scale) },
            "cublasLtMatmulDescCreate",
        )?;
        let operation = Self(handle);
        // CUBLAS_OP_N and CUBLAS_OP_T.
        let as_stored = |operand: &Operand| i32::from(operand.transposed);
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &as_stored(&product.b))?;
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &as_stored(&product.a))?;
        operation.set_scales(product)?;
        operation.set_epilogue(product)?;
        Ok(operation)
    }

    /// Sets the scales of 8-bit operands, which the device reads. NVIDIA's documentation of cuBLAS
    /// (`cublasLtMatmul()`, "to use FP8 kernels") requires a transposed first and a plain second
    /// operand, as in [`Matmul`], f32 inside, and dimensions that are multiples of 16. `FAST_ACCUM`
    /// stays off, so that parts of the sums are promoted to f32 during the product.
    fn set_scales(&self, product: &Matmul) -> Result<()> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        for (attribute, scale) in [
            (Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, product.b.scale),
            (Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, product.a.scale),
        ] {
            if scale != 0 {
                self.set(attribute, &scale)?;
            }
        }
        Ok(())
    }

    /// Sets the epilogue. By NVIDIA's documentation of cuBLAS (`cublasLtEpilogue_t` and
    /// `cublasLtMatmulDescAttributes_t`) the bias has one number for each row of the result, which
    /// are our columns. The auxiliary matrix is stored by columns like the result, so its leading
    /// dimension is our stride, a multiple of 8 elements. Without `AUX_DATA_TYPE` it has the type
    /// of the result.
    fn set_epilogue(&self, product: &Matmul) -> Result<()> {
        use sys::cublasLtEpilogue_t as Kind;
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let (kind, bias, aux) = match product.epilogue {
            Epilogue::None => return Ok(()),
            Epilogue::Bias(bias) => (Kind::CUBLASLT_EPILOGUE_BIAS, Some(bias), None),
            Epilogue::Gelu { bias: Some(bias), aux } => {
                (Kind::CUBLASLT_EPILOGUE_GELU_AUX_BIAS, Some(bias), Some(aux))
            }
            Epilogue::Gelu { bias: None, aux } => {
                (Kind::CUBLASLT_EPILOGUE_GELU_AUX, None, Some(aux))
            }
            Epilogue::GeluSlope { aux } => (Kind::CUBLASLT_EPILOGUE_DGELU, None, Some(aux)),
        };
        self.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &kind)?;
        if let Some(bias) = bias {
            self.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
            let kind = data_type(product.c.element);
            self.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &kind)?;
        }
        if let Some(aux) = aux {
            self.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &aux)?;
            let stride = product.c.stride as i64;
            self.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &stride)?;
        }
        Ok(())
    }

    fn set<V>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &V) -> Result<()> {
        let (value, size) = bytes(value);
        // SAFETY: the value is alive during the call and of the attribute's type.
        let status = unsafe { sys::cublasLtMatmulDescSetAttribute(self.0, attribute, value, size) };
        check(status, "cublasLtMatmulDescSetAttribute")
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { sys::cublasLtMatmulDescDestroy(self.0) };
    }
}

pub(super) struct MatrixLayout(pub(super) sys::cublasLtMatrixLayout_t);

impl MatrixLayout {
    /// Describes the operand by columns: `shape` is that of its transpose.
    pub(super) fn new(operand: &Operand, shape: (usize, usize), batch: usize) -> Result<Self> {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let (rows, columns) = if operand.transposed { (shape.1, shape.0) } else { shape };
        let (kind, ld) = (data_type(operand.element), operand.stride.max(rows) as i64);
        let mut handle = ptr::null_mut();
        // SAFETY: the handle is written by the call.
        let made = unsafe {
            sys::cublasLtMatrixLayoutCreate(&raw mut handle, kind, rows as u64, columns as u64, ld)
        };
        check(made, "cublasLtMatrixLayoutCreate")?;
        let layout = Self(handle);
        if batch > 1 {
            let (count, stride) = (batch as i32, operand.batch_stride as i64);
            for (attribute, (value, size)) in [
                (Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, bytes(&count)),
                (Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, bytes(&stride)),
            ] {
                // SAFETY: the value is alive during the call and of the attribute's type.
                let status = unsafe {
                    sys::cublasLtMatrixLayoutSetAttribute(handle, attribute, value, size)
                };
                check(status, "cublasLtMatrixLayoutSetAttribute")?;
            }
        }
        Ok(layout)
    }
}

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { sys::cublasLtMatrixLayoutDestroy(self.0) };
    }
}

pub(super) struct Preference(pub(super) sys::cublasLtMatmulPreference_t);

impl Preference {
    pub(super) fn new(workspace_bytes: usize, [a, b, c]: [u32; 3]) -> Result<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        // Parts of a sum are added in f32 and in a fixed order. In the result itself they would be
        // added in any order, possibly in a narrower type.
        let reduction =
            sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let mut handle = ptr::null_mut();
        check(
            // SAFETY: the handle is written by the call.
            unsafe { sys::cublasLtMatmulPreferenceCreate(&raw mut handle) },
            "cublasLtMatmulPreferenceCreate",
        )?;
        let preference = Self(handle);
        for (attribute, (value, size)) in [
            (Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes(&workspace_bytes)),
            (Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, bytes(&reduction)),
            // The library's A is our B.
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, bytes(&b)),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, bytes(&a)),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, bytes(&c)),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, bytes(&c)),
        ] {
            // SAFETY: the value is alive during the call and of the attribute's type.
            let status = unsafe {
                sys::cublasLtMatmulPreferenceSetAttribute(handle, attribute, value, size)
            };
            check(status, "cublasLtMatmulPreferenceSetAttribute")?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}
