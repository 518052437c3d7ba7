import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import org.redisson.Redisson;
import org.redisson.api.RLock;
import org.redisson.api.RedissonClient;
import org.redisson.config.Config;

/** One contender with a lock of Redisson. Usage: Peer rlock|rfairlock URL. See peers/README.md. */
public class Peer {
  static volatile boolean stopped;
  static final BlockingQueue<String> lines = new LinkedBlockingQueue<>();

  static void read() {
    try (BufferedReader in = new BufferedReader(new InputStreamReader(System.in))) {
      for (String line; (line = in.readLine()) != null; ) {
        if (line.equals("stop")) {
          stopped = true;
        } else {
          stopped = false;
          lines.add(line);
        }
      }
    } catch (java.io.IOException e) {
      System.err.println(e);
    }
    Runtime.getRuntime().halt(0);
  }

  static void say(String line) {
    System.out.println(line);
    System.out.flush();
  }

  static String cycle(RLock lock, long hold) throws InterruptedException {
    StringBuilder records = new StringBuilder();
    for (boolean last = false; !last; ) {
      long asked = System.nanoTime();
      lock.lock();
      long granted = System.nanoTime();
      last = stopped;
      if (hold > 0 && !last) {
        Thread.sleep(hold / 1000, (int) (hold % 1000) * 1000);
      }
      long left = System.nanoTime();
      lock.unlock();
      records.append(asked).append(' ').append(granted).append(' ').append(left).append('\n');
    }
    return records.append("done").toString();
  }

  public static void main(String[] args) throws Exception {
    boolean fair = args[0].equals("rfairlock");
    Config config = new Config();
    config.setLockWatchdogTimeout(10_000);
    config.useSingleServer().setAddress(args[1]);
    RedissonClient client = Redisson.create(config);
    Thread reader = new Thread(Peer::read);
    reader.setDaemon(true);
    reader.start();
    say("ready Redisson " + Redisson.class.getPackage().getImplementationVersion()
        + ", Java " + System.getProperty("java.version"));
    RLock held = null;
    for (;;) {
      String[] words = lines.take().split(" ");
      try {
        if (words[0].equals("release")) {
          held.unlock();
          say("released " + System.nanoTime());
          continue;
        }
        RLock lock = fair ? client.getFairLock(words[1]) : client.getLock(words[1]);
        if (words[0].equals("cycle")) {
          say(cycle(lock, Long.parseLong(words[2])));
        } else {
          lock.lock();
          held = lock;
          say("granted " + System.nanoTime());
        }
      } catch (Exception e) {
        say("error " + e.toString().replaceAll("\\s+", " "));
      }
    }
  }
}
