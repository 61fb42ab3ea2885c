import java.io.BufferedInputStream;
import java.util.zip.ZipEntry;
import java.util.zip.ZipInputStream;

/** Reads a ZIP from its standard input as it comes, and prints its entries and bytes. */
public class Entries {
  public static void main(String[] args) throws Exception {
    long entries = 0;
    long bytes = 0;
    byte[] buffer = new byte[1 << 16];
    try (ZipInputStream zip = new ZipInputStream(new BufferedInputStream(System.in))) {
      for (ZipEntry entry = zip.getNextEntry(); entry != null; entry = zip.getNextEntry()) {
        entries++;
        for (int read = zip.read(buffer); read >= 0; read = zip.read(buffer)) {
          bytes += read;
        }
      }
    }
    System.out.println(entries + " " + bytes);
  }
}
