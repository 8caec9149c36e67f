use differential::generate::{*,catalogue::*};
use differential::{native::Native,state::*,sequence::*};
use iced_x86::{Decoder,Formatter,IntelFormatter};
use std::collections::BTreeMap;
fn main(){
 let mut g=Generator::new(&Features::baseline());
 let mut n=Native::start().unwrap();
 for f in Family::ALL {
  if g.members(f).is_empty() {continue}
  let mut ends: BTreeMap<String,u32>=BTreeMap::new();
  let mut seen=std::collections::BTreeSet::new();
  let t=std::time::Instant::now();
  let total=20000u64;
  for b in 0..total/64 {
   let seqs: Vec<Sequence> = (0..64).map(|i| g.sequence(f, 1, b*64+i)).collect();
   let asm: Vec<Assembled> = seqs.iter().map(|s| s.assemble().unwrap()).collect();
   let ins: Vec<Input> = asm.iter().map(|a| a.input.clone()).collect();
   if b==0 { for a in asm.iter().take(6) { let mut d=Decoder::with_ip(64,&a.input.code,0x30000000,0); let mut fm=IntelFormatter::new(); let mut s=String::new(); while d.can_decode(){ let i=d.decode(); fm.format(&i,&mut s); s.push_str("; "); } println!("  {s}"); } }
   n.submit(&ins).unwrap();
   let r=n.collect(|p,o| { let k=match o.ending { Ending::Finished=>"fin".into(), Ending::Exception{vector,..}=>format!("#{vector}"), e=>format!("{e:?}")};
     if k=="fin" { for it in &seqs[p].items { if let Some(x)=it.form {seen.insert(x);} } }
     *ends.entry(k).or_default()+=1; });
   if let Err(e)=r { println!("{e}"); }
  }
  println!("{f}: {ends:?} forms finished {}/{} {:.0}/s", seen.len(), g.members(f).len(), total as f64/t.elapsed().as_secs_f64());
  for m in g.members(f) { if !seen.contains(m) && f!=Family::Refused { print!("{}; ", g.forms[*m].name()); } } println!();
 }
}
