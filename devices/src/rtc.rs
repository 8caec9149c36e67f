//! The real-time clock (MC146818) and its 128 bytes of battery-backed memory.
//!
//! It shows the host's clock, in UTC. What the guest writes to the time registers is
//! ignored: it is the host's clock. Everything else it writes is remembered until the
//! machine ends.
//!
//! The time is read register by register, and must not change in between. Real hardware
//! announces an update a quarter of a millisecond ahead (register A, "update in progress"),
//! which is less than a guest needs here for seven reads. So instead the time *stands still*:
//! looking at register A, as every driver does first, takes a fresh look at the clock, and
//! the time registers show that look until it is a tenth of a second old.
//! "Update in progress" therefore never shows.
//!
//! Alarm, update and periodic interrupts never come; their flags (register C) stay clear.
//! Source: Motorola MC146818 data sheet.

use std::time::{Duration, SystemTime};

use actors::device::{Device, Effect};

use crate::registers;

/// Not the data sheet's, but where every PC keeps it.
const CENTURY: u8 = 0x32;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;

/// A: 32.768 kHz crystal, 1024 Hz periodic rate.
const A_POWER_ON: u8 = 0x26;
const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// B: hours count to 24.
const B_24_HOURS: u8 = 1 << 1;
/// B: numbers are binary, not BCD.
const B_BINARY: u8 = 1 << 2;
/// D: the battery is good.
const D_VALID: u8 = 1 << 7;
/// Hours that count to 12: afternoon.
const AFTERNOON: u8 = 1 << 7;

/// Bit 7 of the index port keeps non-maskable interrupts out, and is not part of the index.
const INDEX_MASK: u8 = 0x7f;

/// How long a look at the clock may be shown.
const STANDS_STILL: Duration = Duration::from_millis(100);

/// The clock.
pub struct Rtc {
    clock: Box<dyn Fn() -> SystemTime + Send>,
    looked: SystemTime,
    index: u8,
    memory: [u8; 128],
}

impl Rtc {
    /// Shows the host's clock.
    #[must_use]
    pub fn of_the_host() -> Self {
        Self::new(SystemTime::now)
    }

    /// Shows what `clock` says.
    #[must_use]
    pub fn new(clock: impl Fn() -> SystemTime + Send + 'static) -> Self {
        let mut memory = [0; 128];
        memory[usize::from(STATUS_A)] = A_POWER_ON;
        memory[usize::from(STATUS_B)] = B_24_HOURS;
        memory[usize::from(STATUS_D)] = D_VALID;
        Self { looked: clock(), clock: Box::new(clock), index: 0, memory }
    }

    fn read_indexed(&mut self) -> u8 {
        match self.index {
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => self.time(),
            STATUS_A => {
                self.looked = (self.clock)();
                self.memory[usize::from(STATUS_A)]
            }
            index => self.memory[usize::from(index)],
        }
    }

    fn write_indexed(&mut self, value: u8) {
        let kept = match self.index {
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => return,
            STATUS_C | STATUS_D => return,
            STATUS_A => value & !A_UPDATE_IN_PROGRESS,
            _ => value,
        };
        self.memory[usize::from(self.index)] = kept;
    }

    fn time(&mut self) -> u8 {
        let now = (self.clock)();
        // A clock that was set back is news as well.
        if now.duration_since(self.looked).map_or(true, |age| age > STANDS_STILL) {
            self.looked = now;
        }
        let date = Date::of(self.looked);
        match self.index {
            SECONDS => self.encode(date.second),
            MINUTES => self.encode(date.minute),
            HOURS => self.encode_hour(date.hour),
            WEEKDAY => self.encode(date.weekday),
            DAY => self.encode(date.day),
            MONTH => self.encode(date.month),
            YEAR => self.encode(date.year_of_century),
            _ => self.encode(date.century),
        }
    }

    fn status_b(&self) -> u8 {
        self.memory[usize::from(STATUS_B)]
    }

    fn encode(&self, number: u8) -> u8 {
        if self.status_b() & B_BINARY != 0 { number } else { ((number / 10) << 4) | (number % 10) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.status_b() & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let of_half_day = match hour % 12 {
            0 => 12,
            hour => hour,
        };
        let half = if hour >= 12 { AFTERNOON } else { 0 };
        self.encode(of_half_day) | half
    }
}

/// Index port, then data port.
impl Device for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (register, byte) in registers(offset).zip(data) {
            *byte = match register {
                0 => self.index,
                1 => self.read_indexed(),
                _ => u8::MAX,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        for (register, &byte) in registers(offset).zip(data) {
            match register {
                0 => self.index = byte & INDEX_MASK,
                1 => self.write_indexed(byte),
                _ => {}
            }
        }
        Effect::None
    }
}

/// A moment as people write it, in UTC, each part in the range its register has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Date {
    century: u8,
    year_of_century: u8,
    /// 1 to 12.
    month: u8,
    /// 1 to 31.
    day: u8,
    /// 1 is Sunday.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Date {
    /// Times before 1970 show as 1970, times after 9999 as its last second: the registers
    /// have no room for either.
    fn of(time: SystemTime) -> Self {
        const LAST: u64 = 253_402_300_799;
        let seconds =
            time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs().min(LAST));
        let (days, rest) = (seconds / 86_400, seconds % 86_400);

        // The Gregorian calendar repeats every 400 years (146,097 days). Years that begin
        // in March have their leap day at the end, so that month lengths are regular:
        // months 0 to 11 begin at day (153 m + 2) / 5.
        let days_since_0000_03 = days + 719_468;
        let (cycle, day) = (days_since_0000_03 / 146_097, days_since_0000_03 % 146_097);
        let year_of_cycle = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day_of_year = day - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let is_next_year = month_from_march >= 10;
        let year = 400 * cycle + year_of_cycle + u64::from(is_next_year);

        let part = |number: u64| u8::try_from(number).expect("every part is below 100");
        Self {
            century: part(year / 100),
            year_of_century: part(year % 100),
            month: part(if is_next_year { month_from_march - 9 } else { month_from_march + 3 }),
            day: part(day_of_year - (153 * month_from_march + 2) / 5 + 1),
            weekday: part((days + 4) % 7 + 1), // The first of January 1970 was a Thursday.
            hour: part(rest / 3_600),
            minute: part(rest / 60 % 60),
            second: part(rest % 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Milliseconds since 1970.
    #[derive(Clone, Default)]
    struct Clock(Arc<AtomicU64>);

    impl Clock {
        fn at(milliseconds: u64) -> Self {
            Self(Arc::new(AtomicU64::new(milliseconds)))
        }

        fn go_on(&self, milliseconds: u64) {
            self.0.fetch_add(milliseconds, Ordering::Relaxed);
        }

        fn rtc(&self) -> Rtc {
            let now = self.0.clone();
            Rtc::new(move || {
                SystemTime::UNIX_EPOCH + Duration::from_millis(now.load(Ordering::Relaxed))
            })
        }
    }

    fn read(rtc: &mut Rtc, index: u8) -> u8 {
        assert_eq!(rtc.write(0, &[index]), Effect::None);
        let mut data = [0];
        rtc.read(1, &mut data);
        data[0]
    }

    fn write(rtc: &mut Rtc, index: u8, value: u8) {
        assert_eq!(rtc.write(0, &[index, value]), Effect::None);
    }

    /// Century, year, month, day, weekday, hour, minute, second, as the registers say.
    fn read_time(rtc: &mut Rtc) -> [u8; 8] {
        assert_eq!(read(rtc, STATUS_A) & A_UPDATE_IN_PROGRESS, 0);
        [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|index| read(rtc, index))
    }

    /// 2024-02-29 23:59:59.995 UTC, a Thursday.
    const LEAP_DAY: u64 = 1_709_251_199_995;

    #[test]
    fn the_clock_reads_in_bcd_and_to_24_hours_after_power_on() {
        let rtc = &mut Clock::at(LEAP_DAY).rtc();
        assert_eq!(read_time(rtc), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x59]);
    }

    #[test]
    fn a_guest_may_have_binary_numbers_and_half_days() {
        let rtc = &mut Clock::at(LEAP_DAY).rtc();
        write(rtc, STATUS_B, B_BINARY | B_24_HOURS);
        assert_eq!(read_time(rtc), [20, 24, 2, 29, 5, 23, 59, 59]);
        write(rtc, STATUS_B, 0);
        assert_eq!(read(rtc, HOURS), AFTERNOON | 0x11);
    }

    #[test]
    fn half_days_begin_at_twelve() {
        let hour = |hour: u64| {
            let rtc = &mut Clock::at(hour * 3_600_000).rtc();
            write(rtc, STATUS_B, 0);
            read(rtc, HOURS)
        };
        assert_eq!(hour(0), 0x12);
        assert_eq!(hour(1), 0x01);
        assert_eq!(hour(12), AFTERNOON | 0x12);
        assert_eq!(hour(13), AFTERNOON | 0x01);
    }

    #[test]
    fn the_time_stands_still_while_it_is_read() {
        let clock = Clock::at(LEAP_DAY);
        let rtc = &mut clock.rtc();
        read(rtc, STATUS_A);
        let minute_before = read(rtc, MINUTES);
        clock.go_on(10); // Midnight.
        assert_eq!((minute_before, read(rtc, SECONDS)), (0x59, 0x59));
        assert_eq!(read_time(rtc), [0x20, 0x24, 0x03, 0x01, 6, 0, 0, 0]);
    }

    #[test]
    fn a_guest_that_never_looks_at_register_a_sees_the_time_pass() {
        let clock = Clock::at(0);
        let rtc = &mut clock.rtc();
        assert_eq!(read(rtc, SECONDS), 0);
        clock.go_on(1_000);
        assert_eq!(read(rtc, SECONDS), 1);
    }

    #[test]
    fn a_host_clock_that_is_set_back_is_followed() {
        let clock = Clock::at(LEAP_DAY);
        let rtc = &mut clock.rtc();
        assert_eq!(read(rtc, YEAR), 0x24);
        clock.0.store(0, Ordering::Relaxed);
        assert_eq!(read(rtc, YEAR), 0x70);
    }

    #[test]
    fn setting_the_time_is_ignored_and_other_memory_is_kept() {
        let rtc = &mut Clock::at(LEAP_DAY).rtc();
        write(rtc, YEAR, 0x99);
        write(rtc, CENTURY, 0x19);
        write(rtc, STATUS_D, 0);
        write(rtc, 0x0f, 0x0a);
        write(rtc, 0x7f, 0x55);
        assert_eq!(read(rtc, YEAR), 0x24);
        assert_eq!(read(rtc, CENTURY), 0x20);
        assert_eq!(read(rtc, STATUS_D), D_VALID);
        assert_eq!(read(rtc, 0x0f), 0x0a);
        assert_eq!(read(rtc, 0x7f), 0x55);
    }

    #[test]
    fn keeping_interrupts_out_does_not_change_the_index() {
        let rtc = &mut Clock::at(0).rtc();
        assert_eq!(read(rtc, 0x80 | STATUS_D), D_VALID);
    }

    #[test]
    fn the_calendar_knows_its_corners() {
        let date = |days: u64| {
            let date = Date::of(SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400));
            let year = u32::from(date.century) * 100 + u32::from(date.year_of_century);
            (year, date.month, date.day, date.weekday)
        };
        assert_eq!(date(0), (1970, 1, 1, 5));
        assert_eq!(date(11_016), (2000, 2, 29, 3)); // A leap year, divisible by 400.
        assert_eq!(date(11_017), (2000, 3, 1, 4));
        assert_eq!(date(47_540), (2100, 2, 28, 1)); // Not a leap year.
        assert_eq!(date(47_541), (2100, 3, 1, 2));
        assert_eq!(date(2_932_896), (9999, 12, 31, 6));
        assert_eq!(date(9_999_999), (9999, 12, 31, 6));
        let before_1970 = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(Date::of(before_1970).year_of_century, 70);
    }

    #[test]
    fn every_day_of_400_years_follows_the_one_before() {
        let date = |day: u64| Date::of(SystemTime::UNIX_EPOCH + Duration::from_secs(day * 86_400));
        for day in 0..146_097 {
            let (today, tomorrow) = (date(day), date(day + 1));
            assert_eq!(tomorrow.weekday, today.weekday % 7 + 1);
            let same_month = tomorrow.month == today.month && tomorrow.day == today.day + 1;
            let next_month = tomorrow.month == today.month % 12 + 1 && tomorrow.day == 1;
            assert!(same_month || next_month, "{today:?} {tomorrow:?}");
        }
    }
}
