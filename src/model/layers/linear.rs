//! The one linear layer: a matrix stacked from checkpoint modules, each of them a site for deltas.

use super::Loader;
use crate::error::Result;
use crate::kernels::{Active, Attended, Late, Packed, Spans, Tensor, activate_rows, activated};
use crate::model::delta::{Adapter, Plan};
use crate::model::sites::Site;
use crate::model::spec::Projection;
use candle_core::Tensor as Host;

/// `x W + b`, plus the deltas of the batch's adapters.
pub struct Linear {
    weight: Packed,
    /// `[out]`.
    bias: Option<Tensor>,
    /// Each site's columns of the output: first and count.
    sites: Vec<(Site, usize, usize)>,
    spans: Spans,
}

impl Linear {
    /// Stacks the projection's modules.
    pub fn load(spec: &Projection, loader: &mut Loader) -> Result<Self> {
        let (mut sites, mut start) = (Vec::new(), 0);
        for part in &spec.parts {
            sites.push((loader.sites.add_linear(&part.path, [part.rows, spec.columns], spec.bias), start, part.rows));
            start += part.rows;
        }
        for span in &spec.also {
            sites.push((
                loader.sites.add_alias(&span.path, [span.rows, spec.columns], spec.bias),
                span.first,
                span.rows,
            ));
        }
        let (weight, bias) = stack(spec, loader)?;
        loader.sites.hold(&sites, &weight, bias.as_ref())?;
        let spans: Vec<_> = sites.iter().map(|(site, first, count)| (site.number(), *first, *count)).collect();
        Ok(Self { spans: Spans::new(&spans), weight, bias, sites })
    }

    /// Input width.
    pub fn inputs(&self) -> usize {
        self.weight.inputs()
    }

    /// `x [tokens, in]` -> `[tokens, out]`.
    pub fn forward(&self, x: &Tensor, plan: &Plan) -> Result<Tensor> {
        self.forward_active(x, plan, None)
    }

    /// `x [tokens, in]` -> `f([tokens, out])`, `f` the activation, where there is one; half as many columns if it gates.
    pub fn forward_active(&self, x: &Tensor, plan: &Plan, active: Option<Active>) -> Result<Tensor> {
        Ok(self.changed(x, plan, active, None)?.0)
    }

    /// `x [tokens, in]` -> `[tokens, out]`, and what is left to the attention that reads it.
    pub fn forward_attended(&self, x: &Tensor, plan: &Plan, attended: &Attended) -> Result<(Tensor, Option<Late>)> {
        self.changed(x, plan, None, Some(attended))
    }

    fn changed(
        &self,
        x: &Tensor,
        plan: &Plan,
        active: Option<Active>,
        attended: Option<&Attended>,
    ) -> Result<(Tensor, Option<Late>)> {
        let x = &self.weight.operand(x)?;
        let (updates, late) = plan.updates(&self.sites, &self.spans, x, attended)?;
        let is_otherwise = self.sites.iter().any(|(site, ..)| plan.changes_otherwise(*site));
        let (bias, is_changed) = (self.bias.as_ref(), is_otherwise || !updates.is_none());
        let y = match active.filter(|active| is_changed && self.weight.activates(*active)) {
            // A row that nothing changes is rounded in the same places whatever changes others.
            Some(active) => {
                let changed = plan.changed_rows(&self.sites);
                let y = self.weight.product_apart(x, bias, active, &changed)?;
                updates.add_to(&y)?;
                self.change_otherwise(plan, x, &y)?;
                activate_rows(&y, active.activation, &changed)?;
                y
            }
            None if is_otherwise => {
                let y = self.weight.updated_product(x, bias, &updates, None)?;
                self.change_otherwise(plan, x, &y)?;
                activated(y, active)?
            }
            None => self.weight.updated_product(x, bias, &updates, active)?,
        };
        Ok((y, late))
    }

    fn change_otherwise(&self, plan: &Plan, x: &Tensor, y: &Tensor) -> Result<()> {
        let mut sites = self.sites.iter();
        sites.try_for_each(|(site, first, count)| plan.change_otherwise(*site, x, &y.narrow(1, *first, *count)?))
    }

    /// Some columns of what the base alone makes of `x`: `[tokens, in]` -> `[tokens, columns]`.
    pub fn base_columns(&self, x: &Tensor, first: usize, columns: usize) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(|bias| bias.narrow(0, first, columns)).transpose()?;
        self.weight.columns(first, columns).product(x, bias.as_ref(), None)
    }

    /// Changes `y [rows, columns]`, made by [`Linear::base_columns`], as one adapter changes it.
    pub fn change_columns(&self, y: &Tensor, x: &Tensor, first: usize, adapter: &Adapter) -> Result<()> {
        let end = first + y.dims()[1];
        for (site, start, columns) in self.sites.iter().filter(|(_, start, _)| (first..end).contains(start)) {
            adapter.change(*site, x, &y.narrow(1, start - first, *columns)?)?;
        }
        Ok(())
    }

    /// Whether an adapter changes some of those columns.
    pub fn is_changed_at(&self, first: usize, columns: usize, adapter: &Adapter) -> bool {
        let mut within = self.sites.iter().filter(|(_, start, _)| (first..first + columns).contains(start));
        within.any(|(site, ..)| adapter.delta(*site).is_some())
    }
}

/// The modules' weights as one, `[in, out]`, and their biases, `[out]`.
fn stack(spec: &Projection, loader: &mut Loader) -> Result<(Packed, Option<Tensor>)> {
    let key = spec.parts.iter().map(|part| part.path.as_str()).collect::<Vec<_>>().join(" ");
    if let Some(stack) = loader.shared.stacks.get(&key) {
        return Ok(stack.clone());
    }
    let (mut weights, mut biases) = (Vec::new(), Vec::new());
    for part in &spec.parts {
        weights.push(loader.weight(&part.path, "weight", &[part.rows, spec.columns])?.t()?);
        if spec.bias {
            biases.push(loader.tensor(&part.path, "bias", &[part.rows])?);
        }
    }
    let weight = loader.pack(&Host::cat(&weights, 1)?.contiguous()?)?;
    // Of the products' own type, as these take it.
    let place = |bias: &Host| loader.device.place(bias, Some(loader.format.dtype()));
    let bias = if spec.bias { Some(place(&Host::cat(&biases, 0)?)?) } else { None };
    let stack = (weight, bias);
    loader.shared.stacks.insert(key, stack.clone());
    Ok(stack)
}

#[cfg(test)]
#[cfg(feature = "emulated")]
mod tests {
    use super::*;
    use crate::kernels::{Activation, Device, asked, normal};
    use crate::model::delta::{Delta, LinearDelta, LowRank, Magnitude};
    use crate::model::sites::Sites;
    use candle_core::DType;

    const INPUTS: usize = 48;
    const OUTPUTS: usize = 40;
    const TOKENS: usize = 30;

    type Deltas = Vec<(Site, Delta)>;

    /// A projection of two modules, q and k, with one that is both by another name, on a device, in a type there.
    struct Side {
        device: Device,
        dtype: DType,
        linear: Linear,
        sites: Sites,
    }

    impl Side {
        fn new(device: Device, dtype: DType, weight: &Host, bias: &Host) -> Self {
            let mut sites = Sites::default();
            let mut add = |path, first| (sites.add_linear(path, [OUTPUTS, INPUTS], true), first, OUTPUTS);
            let [q, k] = [add("q", 0), add("k", OUTPUTS)];
            let all = [q, k, (sites.add_alias("qk", [2 * OUTPUTS, INPUTS], true), 0, 2 * OUTPUTS)];
            let weight = Packed::plain(device.place_weight(weight, dtype).unwrap());
            let bias = Some(device.place(bias, Some(dtype)).unwrap());
            sites.hold(&all, &weight, bias.as_ref()).unwrap();
            let spans = Spans::new(&all.map(|(site, first, count)| (site.number(), first, count)));
            Self { linear: Linear { weight, bias, sites: all.to_vec(), spans }, sites, device, dtype }
        }

        /// Rows of the base, and of every adapter so many.
        fn plan(&self, adapters: &[&Deltas]) -> Plan {
            let prepared = |deltas: &Deltas| {
                let adapter = Adapter::new(deltas.clone(), true);
                let adapter = adapter.prepared(&self.sites, &self.device, self.dtype).unwrap();
                let placed = || adapter.placed(&self.sites, &self.device, self.dtype).unwrap();
                std::sync::Arc::new(if self.device.is_cpu() { adapter.clone() } else { placed() })
            };
            let rows = |place: usize| (place + 1) * TOKENS..(place + 2) * TOKENS;
            let offsets: Vec<usize> = (0..=adapters.len() + 1).map(|place| place * TOKENS).collect();
            let segments = adapters.iter().enumerate().map(|(place, deltas)| (rows(place), Some(prepared(deltas))));
            Plan::new(segments, &offsets).unwrap()
        }

        fn run(&self, x: &Host, plan: &Plan, activation: Option<Activation>) -> Vec<[f32; 2 * OUTPUTS]> {
            let x = self.device.place(x, None).unwrap();
            let y = self.linear.forward_active(&x, plan, activation.map(Active::plain)).unwrap().to_host().unwrap();
            let y = y.to_dtype(DType::F32).unwrap();
            y.flatten_all().unwrap().to_vec1().unwrap().as_chunks().0.to_vec()
        }
    }

    fn low_rank(rank: usize, outputs: usize) -> LowRank {
        LowRank::new(normal(0.3, (INPUTS, rank)), normal(1.0, (rank, outputs)))
    }

    /// The CPU's side in f32 and another, and adapters: DoRA, IA3 on outputs, LoRA, the last two of both modules as one, biases
    /// with LoRA and without, and IA3 on inputs.
    fn sides(dtype: DType) -> ([Side; 2], [Deltas; 7]) {
        let (weight, bias) = (normal(0.1, (INPUTS, 2 * OUTPUTS)), normal(1.0, 2 * OUTPUTS));
        let devices = [(Device::Cpu, DType::F32), (Device::named("emulated").unwrap(), dtype)];
        let sides = devices.map(|(device, dtype)| Side::new(device, dtype, &weight, &bias));
        let [q, k, both] = ["q", "k", "qk"].map(|path| sides[0].sites.find(path).unwrap());
        let update = low_rank(5, OUTPUTS);
        let magnitude = Magnitude::new(&normal(1.0, OUTPUTS), &update, &weight.narrow(1, 0, OUTPUTS).unwrap()).unwrap();
        let bias = bias.narrow(0, 0, OUTPUTS).unwrap();
        let dora = LinearDelta::low_rank(update).with_magnitude(&magnitude, Some(&bias)).unwrap();
        let lora = |outputs| LinearDelta::low_rank(low_rank(9, outputs));
        let ia3 = |outputs| LinearDelta::of_scaled_outputs(&normal(1.0, outputs)).unwrap();
        let shifted = |delta: LinearDelta| delta.shifted(&normal(1.0, OUTPUTS)).unwrap();
        let adapters = [
            vec![(q, dora), (k, lora(OUTPUTS))],
            vec![(k, ia3(OUTPUTS))],
            vec![(k, lora(OUTPUTS))],
            vec![(both, ia3(2 * OUTPUTS))],
            vec![(both, lora(2 * OUTPUTS))],
            vec![(q, shifted(lora(OUTPUTS))), (k, shifted(LinearDelta::default()))],
            vec![(k, LinearDelta::of_scaled_inputs(&normal(1.0, INPUTS), None).unwrap())],
        ];
        let deltas = |adapter: Vec<_>| adapter.into_iter().map(|(site, delta)| (site, Delta::Linear(delta))).collect();
        (sides, adapters.map(deltas))
    }

    #[test]
    fn adapters_that_keep_the_weight_take_two_launches_together_and_one_without_a_rank() {
        let (sides, [dora, ia3, lora, ia3_of_both, lora_of_both, biases, _]) = sides(DType::F32);
        let all = [&dora, &ia3, &lora, &ia3_of_both, &lora_of_both, &biases];
        let elsewhere = Deltas::new();
        let batches: [(&[&Deltas], &[&str]); 4] = [
            (&all, &["shrink_f32", "multiply", "expand_f32"]),
            (&[&lora, &elsewhere], &["shrink_f32", "multiply", "expand_f32"]),
            (&[&ia3, &elsewhere, &ia3_of_both], &["multiply", "expand_f32"]),
            (&[&elsewhere], &["multiply"]),
        ];
        let x = normal(1.0, (8 * TOKENS, INPUTS));
        for (adapters, launches) in batches {
            for activation in [None, Some(Activation::Relu)] {
                let expected = sides[0].run(&x, &sides[0].plan(adapters), activation);
                let plan = sides[1].plan(adapters);
                asked::names();
                let made = sides[1].run(&x, &plan, activation);
                // Where nothing changes, the product itself makes what is below 0 to 0.
                let activated = activation.is_some() && launches.len() > 1;
                let expected_names = [launches, &["activate_f32"][..usize::from(activated)]].concat();
                assert_eq!(asked::names(), expected_names);
                for (made, expected) in made.as_flattened().iter().zip(expected.as_flattened()) {
                    assert!((made - expected).abs() < 1e-4, "{made} {expected}");
                }
            }
        }
    }

    #[test]
    fn rows_that_change_before_a_product_activates_them_are_activated_once_and_apart() {
        let ([_, side], [_, _, lora, ia3_of_both, .., scaled]) = sides(DType::BF16);
        let elsewhere = Deltas::new();
        // Of the base, of some rows, and of the base again.
        const THREE: [&str; 3] = ["multiply"; 3];
        let changes = [&["shrink_ahead_bf16"][..], &THREE, &["expand_bf16", "activate_bf16"]].concat();
        // IA3 on inputs multiplies once more, what it has scaled.
        let otherwise = [&THREE[..], &["copy_bf16_bf16", "scale_columns_bf16", "multiply", "activate_bf16"]].concat();
        let twice = [&["multiply"; 5][..], &["expand_bf16", "activate_bf16", "activate_bf16"]].concat();
        let batches: [(&[&Deltas], &[&str]); 4] = [
            (&[&elsewhere], &["multiply"]),
            (&[&lora, &ia3_of_both, &elsewhere], &changes),
            (&[&elsewhere, &scaled], &otherwise),
            (&[&ia3_of_both, &elsewhere, &ia3_of_both], &twice),
        ];
        let x = normal(1.0, (6 * TOKENS, INPUTS));
        for (adapters, launches) in batches {
            let plan = side.plan(adapters);
            let sums = side.run(&x, &plan, None);
            asked::names();
            let made = side.run(&x, &plan, Some(Activation::Gelu));
            // First of all rows are rounded.
            assert_eq!(asked::names(), [&["copy_f32_bf16"], launches].concat());
            let sums = Host::new(sums.as_flattened(), &candle_core::Device::Cpu).unwrap();
            let expected = sums.gelu_erf().unwrap().to_vec1::<f32>().unwrap();
            for (made, expected) in made.as_flattened().iter().zip(expected) {
                assert!((made - expected).abs() <= 0.01 * expected.abs().max(1.0), "{made} {expected}");
            }
        }
    }

    #[test]
    fn rows_are_the_same_bits_whatever_changes_others() {
        for (dtype, activation) in
            [(DType::F32, None), (DType::F32, Some(Activation::Relu)), (DType::BF16, Some(Activation::Gelu))]
        {
            let ([cpu, side], adapters) = sides(dtype);
            let adapters = adapters.each_ref();
            let x = normal(1.0, (9 * TOKENS, INPUTS));
            let run = |plan| side.run(&x, &plan, activation);
            let (base, made) = (run(Plan::default()), run(side.plan(&adapters)));
            let exact = cpu.run(&x, &cpu.plan(&adapters), activation);
            let bound = if dtype == DType::F32 { 1e-4 } else { 0.2 };
            for (made, exact) in made.as_flattened().iter().zip(exact.as_flattened()) {
                assert!((made - exact).abs() < bound * exact.abs().max(1.0), "{made} {exact} in {dtype:?}");
            }
            let end = (1 + adapters.len()) * TOKENS;
            assert!(made[..TOKENS] == base[..TOKENS] && made[end..] == base[end..], "rows of the base");
            let elsewhere = Deltas::new();
            for (place, adapter) in adapters.into_iter().enumerate() {
                let mut alone = [&elsewhere; 7];
                alone[place] = adapter;
                let alone = run(side.plan(&alone));
                let rows = (place + 1) * TOKENS..(place + 2) * TOKENS;
                assert!(made[rows.clone()] == alone[rows.clone()], "adapter {place} in {dtype:?}");
                assert!(alone[rows.clone()] != base[rows.clone()], "adapter {place} changes nothing");
                assert!(alone[..rows.start] == base[..rows.start] && alone[rows.end..] == base[rows.end..]);
            }
        }
    }
}
