//! Measures the decision function of the lifecycle, over the whole life of a process: `cargo bench
//! -p holdfast-supervisor`.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use holdfast_state::{Evidence, ExitRecord, ExitStatus, Launch, OrphanPolicy};

// The module is private to the library, and uses nothing else of it.
#[allow(dead_code, unused_imports)]
#[path = "../src/model/lifecycle.rs"]
mod lifecycle;

use lifecycle::{Change, Input, Nature, State, step};

fn lives(criterion: &mut Criterion) {
    let nature = Nature { launch: Launch::Create, on_orphan: OrphanPolicy::Adopt };
    let life = [
        Input::Created { pid: 4711 },
        Input::Begin(Change::Start),
        Input::Done,
        Input::ProcessGone,
        Input::Recorded(ExitRecord::now(ExitStatus::Code(0), Evidence::Shim)),
        Input::ShimGone,
    ];
    criterion.bench_function("a life of six steps", |bencher| {
        bencher.iter(|| {
            let mut state = State::Creating;
            for input in black_box(&life).clone() {
                state = step(nature, &state, input).0;
            }
            state
        });
    });
}

criterion_group!(benches, lives);
criterion_main!(benches);
