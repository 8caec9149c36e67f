use iced_x86::*;
fn main(){
 for c in Code::values() { let o=c.op_code();
  if !o.is_instruction() || !o.is_available_in_mode(64) || c.encoding()!=EncodingKind::Legacy {continue}
  println!("{:?}\t{:?}\t{:?}\t{}\t{}{}{}\t{}\t{}", c, c.mnemonic(), c.cpuid_features(), o.is_privileged(), o.can_use_lock_prefix() as u8, o.can_use_rep_prefix() as u8, o.can_use_repne_prefix() as u8, o.instruction_string(), o.decoder_option());
 }
}
