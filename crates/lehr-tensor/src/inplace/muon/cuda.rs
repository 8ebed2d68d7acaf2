//! The update on a GPU: maps of one shape together, with batches of products.

use super::part::Part;
use super::polar::STEPS;
use super::{Muon, MuonItem};
use crate::cuda::blas::{Element, Matmul, Operand};
use crate::cuda::{Arg, Cuda, Extent, Source, args, int, source};
use crate::inplace::{Clip, cuda::table};
use crate::{DType, Result, Tensor};

pub(crate) static KERNELS: Source = source!("muon", "kernel.cu");
const OP: &str = "muon";

/// Elements of the matrices that are updated together: 64 Mi, which limits the scratch memory.
const TOGETHER_MAX: usize = 1 << 26;

/// A map with the addresses of its tensors.
struct Job {
    part: Part,
    /// Parameter, gradient, momentum, second moment of the part, copy in the computing type.
    addresses: [u64; 5],
}

/// Updates all items that have a gradient.
pub(super) fn update(items: &[MuonItem<'_>], rule: Muon, clip: Option<Clip<'_>>) -> Result<()> {
    // The tensors live until all work is started.
    let mut held = Vec::new();
    let mut jobs = Vec::new();
    let mut dtype = DType::F32;
    for item in items {
        let Some(grad) = item.param.grad() else { continue };
        let (value, shadow) = item.param.parts_to_write()?;
        dtype = shadow.as_ref().map_or(dtype, Tensor::dtype);
        let [param, gradient, momentum, second] =
            [&value, &grad, &*item.momentum, &*item.second].map(Tensor::device_ptr);
        let shadow_at = shadow.as_ref().map_or(0, Tensor::device_ptr);
        jobs.extend(Part::all(item.param).into_iter().map(|part| {
            let second = second + 4 * part.moments_at as u64;
            Job { part, addresses: [param, gradient, momentum, second, shadow_at] }
        }));
        held.push((value, shadow, grad));
    }
    let Some((beside, ..)) = held.first() else { return Ok(()) };
    let update = Update { cuda: beside.cuda()?, beside, dtype, rule, clip };
    // In the order of their first map, so that a step repeats its bits.
    let mut shapes: Vec<Part> = Vec::new();
    for job in &jobs {
        if !shapes.contains(&job.part.shape()) {
            shapes.push(job.part.shape());
        }
    }
    for shape in shapes {
        let alike: Vec<&Job> = jobs.iter().filter(|job| job.part.shape() == shape).collect();
        for jobs in alike.chunks((TOGETHER_MAX / shape.len()).max(1)) {
            update.run(shape, jobs)?;
        }
    }
    Ok(())
}

impl Part {
    /// The part without its place: what parts that are updated together share.
    fn shape(&self) -> Self {
        let runs = crate::OutputRuns { first: 0, ..self.runs };
        Self { moments_at: 0, runs, ..*self }
    }
}

/// The numbers of an update, and its device.
struct Update<'a> {
    cuda: &'static Cuda,
    beside: &'a Tensor,
    dtype: DType,
    rule: Muon,
    clip: Option<Clip<'a>>,
}

impl Update<'_> {
    /// Starts a kernel with a grid of `blocks` by the number of parts.
    fn launch(
        &self,
        name: &'static str,
        blocks: usize,
        n_parts: usize,
        args: &[Arg],
    ) -> Result<()> {
        /// Limit of the second dimension of a grid.
        const PARTS_MAX: usize = 65_535;
        assert!(n_parts <= PARTS_MAX, "more matrices of one shape than a grid has rows");
        let mut extent = Extent::line(blocks.max(1), 256);
        extent.grid[1] = n_parts as u32;
        self.cuda.launch(&KERNELS, self.dtype, name, extent, args)
    }

    /// The type of operands: f32, or bf16 also where parameters are f16, whose range is too small.
    fn operand(&self) -> DType {
        if self.dtype == DType::F32 { DType::F32 } else { DType::BF16 }
    }

    fn like(&self, n: usize, dtype: DType) -> Result<Tensor> {
        Tensor::uninit_on(self.beside.device(), [n], dtype)
    }

    /// Updates the parts `jobs`, all of `shape`.
    fn run(&self, shape: Part, jobs: &[&Job]) -> Result<()> {
        let Part { rows, cols, .. } = shape;
        let n = jobs.len();
        let words: Vec<u64> = jobs
            .iter()
            .flat_map(|job| {
                let [param, grad, momentum, second, shadow] = job.addresses;
                [param, grad, momentum, second, shadow, job.part.runs.first as u64]
            })
            .collect();
        let parts = table(&words, self.beside)?;
        let x = match self.rule.moves {
            true => Some(self.like(n * shape.len(), DType::F32)?),
            false => None,
        };
        self.gather(&parts, &shape, n, x.as_ref())?;
        let Some(mut x) = x else { return Ok(()) };
        let lines = |by_row: bool| if by_row { rows } else { cols };
        let by_row = shape.is_out_in;
        let squares = self.squares(&x, &shape, n, by_row)?;
        let factors = self.like(n * lines(by_row), DType::F32)?;
        let args = args![&squares, int(OP, lines(by_row))?, &factors];
        self.launch("muon_equalize", 1, n, args)?;
        self.orthogonalize(&shape, n, &mut x, &factors)?;
        let by_row = shape.has_row_moments();
        let squares = self.squares(&x, &shape, n, by_row)?;
        let factors = self.like(n * lines(by_row), DType::F32)?;
        let args = args![
            &parts,
            &squares,
            int(OP, lines(by_row))?,
            int(OP, lines(!by_row))?,
            self.rule.beta2,
            self.sum(),
            &factors,
        ];
        self.launch("muon_normalize", 1, n, args)?;
        self.apply(&parts, &shape, n, (&x, &factors))
    }

    /// The squared norm of the whole gradient, if it decides on the device.
    fn sum(&self) -> Option<&Tensor> {
        self.clip.as_ref().and_then(|clip| clip.squared_norm.on_cuda())
    }

    /// Blocks of a pass over the elements of each of `n` parts.
    fn blocks(&self, shape: &Part, n: usize) -> usize {
        let most = (16 * self.cuda.n_sms() as usize).div_ceil(n);
        shape.len().div_ceil(1024).min(most)
    }

    fn gather(&self, parts: &Tensor, shape: &Part, n: usize, x: Option<&Tensor>) -> Result<()> {
        let Muon { momentum, grad_scale, .. } = self.rule;
        let Part { rows, cols, width, is_out_in, runs, .. } = *shape;
        let args = args![
            parts,
            int(OP, rows)?,
            int(OP, cols)?,
            int(OP, width)?,
            int(OP, runs.len)?,
            int(OP, runs.stride)?,
            is_out_in,
            momentum,
            self.sum(),
            self.clip.map_or(0.0, |clip| clip.max_norm),
            grad_scale,
            x,
        ];
        self.launch("muon_gather", self.blocks(shape, n), n, args)
    }

    fn squares(&self, x: &Tensor, shape: &Part, n: usize, by_row: bool) -> Result<Tensor> {
        let Part { rows, cols, .. } = *shape;
        let (lines, name, blocks) = match by_row {
            true => (rows, "muon_row_squares", rows.div_ceil(8)),
            false => (cols, "muon_column_squares", cols.div_ceil(32)),
        };
        let sums = self.like(n * lines, DType::F32)?;
        let args = args![x, int(OP, rows)?, int(OP, cols)?, &sums];
        self.launch(name, blocks, n, args)?;
        Ok(sums)
    }

    /// Replaces `x`, times its factors, by its orthogonal factors, in f32.
    fn orthogonalize(
        &self,
        shape: &Part,
        n: usize,
        x: &mut Tensor,
        factors: &Tensor,
    ) -> Result<()> {
        let Part { rows, cols, .. } = *shape;
        let (side, long, operand) = (shape.side(), rows.max(cols), self.operand());
        let (len, square) = (shape.len(), side * side);
        let matrix = |at: &Tensor, width, size| Operand {
            batch_stride: size,
            ..Operand::rows(at.device_ptr(), Element::from(at.dtype()), width)
        };
        let [mut from, mut to] = [self.like(n * len, operand)?, self.like(n * len, operand)?];
        let args = args![&*x, int(OP, rows)?, int(OP, cols)?, factors, shape.is_out_in, &from];
        self.launch("muon_scale", self.blocks(shape, n), n, args)?;
        let [gram, polynomial] = [self.like(n * square, operand)?, self.like(n * square, operand)?];
        let squared = self.like(n * square, DType::F32)?;
        let product = |size, a, b, c: Operand| {
            Matmul { batch: n, ..Matmul::new(size, a, b, c) }.run(self.cuda)
        };
        let gram_at = matrix(&gram, side, square);
        for (step, [a, b, c]) in STEPS.into_iter().enumerate() {
            let at = matrix(&from, cols, len);
            let (left, right) =
                if rows <= cols { (at, at.by_columns()) } else { (at.by_columns(), at) };
            product((side, side, long), left, right, gram_at)?;
            product((side, side, side), gram_at, gram_at, matrix(&squared, side, square))?;
            let args = args![&gram, &squared, n as i64, int(OP, side)?, a, b, c, &polynomial];
            let extent = Extent::elementwise(self.cuda, n * square);
            self.cuda.launch(&KERNELS, self.dtype, "muon_polynomial", extent, args)?;
            let p = matrix(&polynomial, side, square);
            let (left, right) = if rows <= cols { (p, at) } else { (at, p) };
            let is_last = step + 1 == STEPS.len();
            let out = if is_last { &*x } else { &to };
            product((rows, cols, side), left, right, matrix(out, cols, len))?;
            std::mem::swap(&mut from, &mut to);
        }
        Ok(())
    }

    fn apply(
        &self,
        parts: &Tensor,
        shape: &Part,
        n: usize,
        (x, factors): (&Tensor, &Tensor),
    ) -> Result<()> {
        let Muon { lr, weight_decay, cautious, .. } = self.rule;
        let Part { rows, cols, width, is_out_in, runs, .. } = *shape;
        let args = args![
            parts,
            int(OP, rows)?,
            int(OP, cols)?,
            int(OP, width)?,
            int(OP, runs.len)?,
            int(OP, runs.stride)?,
            is_out_in,
            x,
            factors,
            shape.has_row_moments(),
            lr * shape.lr_scale(),
            weight_decay,
            cautious,
            self.sum(),
        ];
        self.launch("muon_apply", self.blocks(shape, n), n, args)
    }
}
