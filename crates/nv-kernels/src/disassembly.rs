//! What the compiler made of the inner loops, of every tier: no sum may fall out of its register unseen.
#![expect(unsafe_code, reason = "reads the functions' own instructions")]

use std::any::type_name;
use std::ops::RangeInclusive;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::attention::outer::{Add, OuterKernel};
use crate::linear::gemm::Gemm;
use crate::linear::gemv::Gemv;
use crate::linear::int8::{self, Int8Kernel};
use crate::linear::micro_kernel::MicroKernel;
use crate::tier::Tier;
use crate::{avx2, avx512};

/// What a loop has.
#[derive(Debug, Clone, Copy, Default)]
struct Loop {
    products: usize,
    calls: usize,
    /// Vectors that go to the stack or come from there.
    spills: usize,
}

/// The instructions of the function at `address`.
fn instructions(address: usize) -> Vec<Instruction> {
    /// More than any function here has.
    const MOST_BYTES: usize = 256 * 1024;
    // SAFETY: the decoder stops at the function's end, and the program's code goes on for a while after any of these.
    let code = unsafe { std::slice::from_raw_parts(address as *const u8, MOST_BYTES) };
    let mut decoder = Decoder::with_ip(64, code, address as u64, DecoderOptions::NONE);
    let (mut instructions, mut last_target) = (Vec::new(), 0);
    loop {
        let instruction = decoder.decode();
        assert!(!instruction.is_invalid(), "no instruction at {:x}", instruction.ip());
        instructions.push(instruction);
        if instruction.near_branch_target() != 0 && !instruction.is_call_near() {
            last_target = last_target.max(instruction.near_branch_target());
        }
        let ends = match instruction.flow_control() {
            FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::Exception => true,
            // The last one is a panic's: the next function comes after it, or what fills the place before that.
            FlowControl::Call | FlowControl::IndirectCall => {
                let next = code[decoder.position()];
                instruction.next_ip().is_multiple_of(16) || matches!(next, 0xcc | 0x66 | 0x90)
            }
            _ => false,
        };
        if ends && instruction.next_ip() > last_target {
            return instructions;
        }
    }
}

/// The loops with products that have no other such loop inside.
fn inner_loops(address: usize) -> Vec<Loop> {
    let instructions = instructions(address);
    let at = |ip: u64| instructions.binary_search_by_key(&ip, Instruction::ip).ok();
    let loops: Vec<(RangeInclusive<usize>, Loop)> = instructions
        .iter()
        .enumerate()
        .filter(|(_, jump)| jump.is_jcc_short_or_near() || jump.is_jmp_short_or_near())
        .filter_map(|(end, jump)| Some(at(jump.near_branch_target())?..=end))
        .filter(|range| range.start() <= range.end())
        .map(|range| (range.clone(), Loop::of(&instructions[range])))
        .filter(|(_, found)| found.products > 0)
        .collect();
    let is_inner = |range: &RangeInclusive<usize>| {
        let inside = |other: &RangeInclusive<usize>| {
            other != range && range.contains(other.start()) && range.contains(other.end())
        };
        !loops.iter().any(|(other, _)| inside(other))
    };
    loops.iter().filter(|(range, _)| is_inner(range)).map(|(_, found)| *found).collect()
}

impl Loop {
    fn of(instructions: &[Instruction]) -> Self {
        let mut found = Self::default();
        for instruction in instructions {
            let mnemonic = instruction.mnemonic();
            let is_product = matches!(
                mnemonic,
                Mnemonic::Vfmadd132ps
                    | Mnemonic::Vfmadd213ps
                    | Mnemonic::Vfmadd231ps
                    | Mnemonic::Vdpbf16ps
                    | Mnemonic::Vpdpbusd
                    | Mnemonic::Vpmaddwd
            );
            found.products += usize::from(is_product);
            found.calls += usize::from(instruction.flow_control() == FlowControl::Call);
            let kinds = (0..instruction.op_count()).map(|i| (i, instruction.op_kind(i)));
            let is_vector = kinds.clone().any(|(i, kind)| {
                kind == OpKind::Register && instruction.op_register(i).is_vector_register()
            });
            let is_on_stack = kinds.clone().any(|(_, kind)| kind == OpKind::Memory)
                && instruction.memory_base() == Register::RSP;
            found.spills += usize::from(is_vector && is_on_stack);
        }
        found
    }
}

/// Holds the loops that bring `products` forward a step, or several steps. Up to `reloads` constants come from the stack.
fn check(name: &str, address: usize, products: usize, reloads: usize) {
    let loops = inner_loops(address);
    let steps: Vec<_> =
        loops.iter().filter(|found| found.products.is_multiple_of(products)).collect();
    assert!(!steps.is_empty(), "{name}: no loop of {products} products in {loops:#?}");
    let clean = steps.iter().filter(|found| found.calls == 0 && found.spills <= reloads).count();
    assert!(clean > 0, "{name}: {steps:#?}");
}

/// Holds the loops over `T` tokens by `MR` rows.
fn check_gemv<K: MicroKernel, const MR: usize, const T: usize>() {
    let address = K::Tier::address_of::<Gemv<'static, K, MR, T, 2>>();
    check(&format!("{}, {MR} by {T}", type_name::<K>()), address, MR * T * K::VECTORS, 0);
}

/// Holds the loops over tiles of `MR` rows by `NR` tokens.
fn check_gemm<K: MicroKernel, const MR: usize, const NR: usize>() {
    let address = K::Tier::address_of::<Gemm<'static, K, MR, NR>>();
    check(&format!("{}, {MR} by {NR}", type_name::<K>()), address, MR * NR * K::VECTORS, 0);
}

/// Holds the loops over strips by as many tokens as a tile has, each product of a step being `products` instructions.
fn check_int8<K: Int8Kernel, const STEPS: usize>(products: usize) {
    let address = K::address_of::<int8::Multiply<'static, K, STEPS>>();
    let products = K::MR * K::NR * products;
    check(&format!("{}, {STEPS} steps", type_name::<K>()), address, products, 0);
}

/// Holds what unpacks 4 bits to the loops that multiply, where it has the tier's instructions.
fn check_unpacking<K: Int8Kernel>() {
    let address = K::address_of::<int8::Multiply<'static, K, 32>>();
    let instructions = instructions(address);
    let products =
        instructions.iter().filter(|found| found.mnemonic() == Mnemonic::Vpmullw).count();
    // Of two steps in each strip of a block.
    assert!(products >= 2 * int8::strips::BLOCK, "{}: {products}", type_name::<K>());
}

/// Holds the loops over six rows.
fn check_outer<K: OuterKernel<R>, const R: usize>(reloads: usize) {
    let address = K::Tier::address_of::<Add<'static, K, R, true>>();
    check(type_name::<K>(), address, 6 * K::REGISTERS[2] * K::PRODUCTS, reloads);
}

#[test]
fn sums_of_linear_layers_stay_in_registers() {
    check_gemv::<avx2::dot::Bf16Widened, 4, 1>();
    check_gemv::<avx2::dot::F32, 4, 1>();
    check_gemm::<avx2::dot::Bf16Widened, 3, 4>();
    check_gemm::<avx2::dot::F32, 2, 4>();
    check_gemm::<avx2::dot::Unpacked<avx2::dot::Bf16Widened>, 3, 4>();
    check_gemm::<avx2::dot::Unpacked<avx2::dot::F32>, 3, 4>();

    check_gemv::<avx512::dot::Bf16Widened, 2, 1>();
    check_gemv::<avx512::dot::Bf16Widened, 2, 5>();
    check_gemv::<avx512::dot::F32, 2, 1>();
    check_gemv::<avx512::dot::F32, 2, 5>();
    check_gemm::<avx512::dot::Bf16Widened, 4, 6>();
    check_gemm::<avx512::dot::F32, 4, 6>();
    check_gemm::<avx512::dot::Unpacked, 4, 6>();

    check_gemv::<avx512::dot::Bf16Pairs, 1, 1>();
    check_gemv::<avx512::dot::Bf16Pairs, 1, 5>();
    check_gemm::<avx512::dot::Bf16Pairs, 4, 6>();
    check_gemm::<avx512::dot::Bf16Pairs, 3, 8>();
    check_gemm::<avx512::dot::Bf16Pairs, 8, 3>();
}

#[test]
fn sums_of_integers_stay_in_registers() {
    check_int8::<avx2::int8::Widened, 32>(4);
    check_int8::<avx2::int8::Vnni, 32>(2);
    check_int8::<avx512::int8::Vnni, 32>(1);

    check_unpacking::<avx2::int8::Widened>();
    check_unpacking::<avx2::int8::Vnni>();
    check_unpacking::<avx512::int8::Vnni>();
}

#[test]
fn sums_of_attention_stay_in_registers() {
    check_outer::<avx2::outer::F32, 1>(0);
    check_outer::<avx2::outer::Bf16Widened, 1>(0);
    check_outer::<avx512::outer::F32, 2>(0);
    // The mask of the second numbers, once for each register of pairs.
    check_outer::<avx512::outer::Bf16Widened, 2>(4);
    check_outer::<avx512::outer::Bf16Pairs, 2>(0);
}
