//! The loader as an actor: who waits, who does not, and what the machine hears.

mod common;

use std::sync::Arc;

use actors::ActorName;
use actors::contract::boot::Load;
use actors::contract::guest::{TellMachine, Tidings};
use actors::contract::vcpu::Break;
use actors::threads::Ending;
use common::{Files, MIB, TestMemory, load_of, odd, pvh_elf};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use loader_actor::LoadError;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Runs `story` on an actix system of its own.
fn in_a_system<T>(story: impl Future<Output = T>) -> T {
    actix::System::new().block_on(story)
}

/// What the machine hears.
fn ear() -> (TellMachine, Receiver<Tidings>) {
    let (tell, hear) = unbounded();
    (Arc::new(move |tidings| tell.send(tidings).unwrap()), hear)
}

fn gone(ending: Ending) -> Tidings {
    Tidings::Gone { actor: ActorName::Loader, ending }
}

fn kernel(files: &Files) -> Load {
    load_of(&files.with("vmlinux", &pvh_elf()))
}

#[test]
fn a_guest_is_loaded_and_a_bad_one_is_refused_by_the_same_loader() {
    let files = Files::new();
    let memory = Arc::new(TestMemory::of(64 * MIB));
    let (tell, hear) = ear();
    let (bad, good) = in_a_system(async {
        let (loader, joined) = loader_actor::start(memory.layout(), memory.clone(), tell).unwrap();
        let bad = loader.load(load_of(&files.path("none"))).await;
        let good = loader.clone().load(kernel(&files)).await;
        assert!(!loader.pulse().look().is_busy(), "done, and at rest");
        loader.retire().await;
        assert_eq!(loader.load(kernel(&files)).await, Err(LoadError::Gone("has ended")));
        joined.join();
        (bad, good)
    });
    assert!(matches!(bad, Err(LoadError::Input(_))), "{bad:?}");
    assert_eq!(good, TestMemory::of(64 * MIB).place(&kernel(&files)));
    assert_eq!(hear.try_iter().collect::<Vec<_>>(), [gone(Ending::Returned)]);
}

#[test]
fn while_the_worker_waits_for_the_pmap_the_arbiter_goes_on_and_the_pulse_rests() {
    let files = Files::new();
    let (entered, until_entered) = oneshot::channel();
    let entered = Mutex::new(Some(entered));
    let (go_on, wait): (Sender<()>, _) = bounded(0);
    let port = odd(move || {
        entered.lock().take().unwrap().send(()).unwrap();
        wait.recv().unwrap();
    });
    let (tell, _hear) = ear();
    let loaded = in_a_system(async {
        let (loader, _joined) =
            loader_actor::start(port.memory.layout(), port.clone(), tell).unwrap();
        let pulse = loader.pulse();
        let load = kernel(&files);
        let loading = actix::spawn(async move { loader.load(load).await });
        // All of this runs on the arbiter whose desk has the request.
        until_entered.await.unwrap();
        assert!(!pulse.look().is_busy());
        go_on.send(()).unwrap();
        loading.await.unwrap()
    });
    assert!(loaded.is_ok());
}

#[test]
fn a_panic_is_told_with_its_words_and_whoever_waits_is_answered() {
    let files = Files::new();
    let port = odd(|| panic!("no such frame"));
    let (tell, hear) = ear();
    let (during, after) = in_a_system(async {
        let (loader, joined) =
            loader_actor::start(port.memory.layout(), port.clone(), tell).unwrap();
        let during = loader.load(kernel(&files)).await;
        joined.join();
        (during, loader.load(kernel(&files)).await)
    });
    assert_eq!(during, Err(LoadError::Gone("died while it loaded the guest")));
    assert_eq!(after, Err(LoadError::Gone("has ended")));
    let told = hear.try_iter().collect::<Vec<_>>();
    assert_eq!(told, [gone(Ending::Panicked("no such frame".to_owned()))]);
}

#[test]
fn asked_to_panic_it_dies_and_says_so() {
    let memory = Arc::new(TestMemory::of(MIB));
    let (tell, hear) = ear();
    in_a_system(async {
        let (loader, joined) = loader_actor::start(memory.layout(), memory.clone(), tell).unwrap();
        loader.break_(Break::Panic);
        // The desk must hand the order on before this thread waits for the worker.
        while !joined.is_finished() {
            tokio::task::yield_now().await;
        }
        joined.join();
    });
    let told = hear.try_iter().collect::<Vec<_>>();
    assert_eq!(told, [gone(Ending::Panicked("asked to break, by a test".to_owned()))]);
}

#[test]
fn asked_to_hang_it_is_busy_without_a_beat_and_its_desk_still_answers() {
    let files = Files::new();
    let memory = Arc::new(TestMemory::of(64 * MIB));
    let (tell, hear) = ear();
    let answer = in_a_system(async {
        let (loader, _hung) = loader_actor::start(memory.layout(), memory.clone(), tell).unwrap();
        loader.break_(Break::Hang);
        while !loader.pulse().look().is_busy() {
            tokio::task::yield_now().await;
        }
        let seen = loader.pulse().look();
        // Two requests wait for the worker; a third would wait in vain.
        for _ in 0..2 {
            let (loader, load) = (loader.clone(), kernel(&files));
            drop(actix::spawn(async move { loader.load(load).await }));
        }
        tokio::task::yield_now().await;
        let answer = loader.load(kernel(&files)).await;
        assert_eq!(loader.pulse().look(), seen);
        answer
    });
    assert_eq!(answer, Err(LoadError::Gone("is busy with other guests")));
    assert_eq!(hear.try_recv(), Err(crossbeam_channel::TryRecvError::Empty));
}

#[test]
fn when_the_desk_goes_the_worker_ends() {
    let memory = Arc::new(TestMemory::of(MIB));
    let (tell, hear) = ear();
    let joined = in_a_system(async {
        let (loader, joined) = loader_actor::start(memory.layout(), memory.clone(), tell).unwrap();
        drop(loader);
        joined
    });
    // The system is over, and the desk with it.
    joined.join();
    assert_eq!(hear.try_iter().collect::<Vec<_>>(), [gone(Ending::Returned)]);
}
